"""Sampling is refused by field, refs order the tries of a turn."""

import math
from dataclasses import replace
from typing import Any

import pytest

from runtime.domain.sampling import Penalties
from runtime.domain.sequence import MAX_SEED, Ref, Sampling, Sequence
from runtime.errors import InvalidArgument
from runtime.ids import SequenceId, TurnId

GOOD = Sampling(max_tokens=1)


@pytest.mark.parametrize(
    "good",
    [
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"seed": MAX_SEED},
        {"stop": ("x",) * 16},
        {"stop": ("x" * 1024,)},
        {"stop_token_ids": tuple(range(256))},
        {"logprobs": 0},
        {"logprobs": 20},
        {"min_p": 1.0},
        {"typical_p": 1e-9},
        {"logit_bias": tuple((token, -100.0) for token in range(1024))},
        {"logit_bias": ((5, 100.0),)},
        {"min_tokens": 1},
        {"banned_tokens": ((1,),) * 256},
        {"banned_tokens": (tuple(range(64)),)},
        {"penalties": Penalties(0.1, -2, -2)},
        {"penalties": Penalties(10, 2, 2)},
    ],
    ids=str,
)
def test_the_bounds_themselves_are_allowed(good: dict[str, Any]) -> None:
    replace(GOOD, **good).validate()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("stop", ("x",) * 17),
        ("stop", ("a", "")),
        ("stop", ("x" * 1025,)),
        ("stop_token_ids", tuple(range(257))),
        ("logprobs", -1),
        ("logprobs", 21),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("typical_p", 0.0),
        ("typical_p", 1.1),
        ("typical_p", math.nan),
        ("logit_bias", ((5, 100.5),)),
        ("logit_bias", ((5, -math.inf),)),
        ("logit_bias", ((4, 1.0), (5, math.nan))),
        ("logit_bias", ((5, 1.0), (5, 2.0))),
        ("min_tokens", -1),
        ("min_tokens", 2),
        ("banned_tokens", ((),)),
        ("banned_tokens", (tuple(range(65)),)),
    ],
)
def test_a_field_out_of_its_range_is_named_with_its_value(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        replace(GOOD, **{field: value}).validate()  # type: ignore[arg-type]
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{field} ")
    assert repr(value)[:20] in refused.value.message


@pytest.mark.parametrize(
    ("field", "penalties"),
    [
        ("repetition_penalty", Penalties(repetition=0.05)),
        ("repetition_penalty", Penalties(repetition=10.5)),
        ("repetition_penalty", Penalties(repetition=math.nan)),
        ("presence_penalty", Penalties(presence=2.1)),
        ("presence_penalty", Penalties(presence=math.nan)),
        ("frequency_penalty", Penalties(frequency=-2.1)),
        ("frequency_penalty", Penalties(frequency=math.inf)),
    ],
)
def test_a_penalty_out_of_its_range_is_called_as_requests_call_it(field: str, penalties: Penalties) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field} must be between") as refused:
        replace(GOOD, penalties=penalties).validate()
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "value", "count"),
    [
        ("logit_bias", tuple((token, 0.5) for token in range(1025)), 1025),
        ("banned_tokens", ((1,),) * 257, 257),
    ],
)
def test_too_many_entries_are_counted_and_not_shown(field: str, value: object, count: int) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field} takes at most .*, got {count}$") as refused:
        replace(GOOD, **{field: value}).validate()  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop_token_ids", (10,)), ("logit_bias", ((3, 1.0), (10, 1.0))), ("banned_tokens", ((1, 2), (3, 10)))],
)
def test_a_token_that_the_model_has_not_is_refused_by_field(field: str, value: object) -> None:
    sampling = replace(GOOD, **{field: value})  # type: ignore[arg-type]
    sampling.check_vocabulary(11)
    with pytest.raises(InvalidArgument, match="outside the vocabulary of 10") as refused:
        sampling.check_vocabulary(10)
    assert refused.value.field == field


def test_a_refusal_does_not_repeat_a_huge_value() -> None:
    with pytest.raises(InvalidArgument) as refused:
        replace(GOOD, stop=("x" * 100_000,)).validate()
    assert len(refused.value.message) < 400


def test_the_newer_of_two_tries_of_a_turn_is_the_greater() -> None:
    turn = TurnId("turn")
    tries = [Ref(turn, 1, 1), Ref(turn, 1, 2), Ref(turn, 1, 10), Ref(turn, 2, 1)]
    assert sorted(reversed(tries)) == tries
    assert len({ref.sequence for ref in tries}) == len(tries)


def test_an_engine_gets_the_forced_tokens_after_the_prompt() -> None:
    assert Sequence(SequenceId("s"), (1, 2), GOOD, b"", forced=(3,)).tokens == (1, 2, 3)


def test_a_tenants_secret_is_not_shown() -> None:
    assert "secret" not in repr(Sequence(SequenceId("s"), (1,), GOOD, b"secret"))
