"""Sampling is refused by field, refs order the tries of a turn."""

import math
from dataclasses import replace
from typing import Any

import pytest

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
    ],
)
def test_a_field_out_of_its_range_is_named_with_its_value(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        replace(GOOD, **{field: value}).validate()  # type: ignore[arg-type]
    assert refused.value.field == field
    assert refused.value.message.startswith(f"{field} ")
    assert repr(value)[:20] in refused.value.message


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
