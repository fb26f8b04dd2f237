"""Requests from arguments: what is left out stays absent, and what cannot be sent is refused by its name."""

import pytest

import batonmesh
from batonmesh import InvalidArgument, Options, TooLarge
from batonmesh.messages import MAX_REQUEST_BYTES, count_request, generate_request
from batonmesh.v1 import common_pb2


def test_what_is_left_out_stays_absent_and_zero_is_sent() -> None:
    request = generate_request("m", "hello", None, Options(temperature=0.0, seed=0))
    assert {field.name for field, _ in request.sampling.ListFields()} == {"temperature", "seed"}
    assert not request.HasField("deadline_ms")


def test_a_prompt_is_text_tokens_or_a_conversation() -> None:
    assert generate_request("m", "hello", None, Options()).prompt.text == "hello"
    assert list(generate_request("m", (3, 4), None, Options()).prompt.tokens.ids) == [3, 4]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    messages = count_request("m", chat).prompt.chat.messages
    assert [(each.role, each.content) for each in messages] == [("user", "hi"), ("assistant", "yes?")]


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert list(generate_request("m", "x", None, Options(stop="END")).sampling.stop) == ["END"]
    assert list(generate_request("m", "x", None, Options(stop=["a", "b"])).sampling.stop) == ["a", "b"]


def test_options_of_several_values_are_sent_as_they_are() -> None:
    options = Options(logit_bias={7: -1.5}, banned_tokens=[[1, 2], (3,)], bad_words="no")
    sampling = generate_request("m", "x", None, options).sampling
    assert dict(sampling.logit_bias) == {7: -1.5}
    assert [list(each.ids) for each in sampling.banned_tokens] == [[1, 2], [3]]
    assert list(sampling.bad_words) == ["no"]


def test_a_grammar_is_one_of_four_options() -> None:
    def sent(**options: object) -> common_pb2.Grammar:
        return generate_request("m", "x", None, options).sampling.grammar  # type: ignore[arg-type]

    assert sent(json_schema={"type": "object"}) == common_pb2.Grammar(json_schema='{"type": "object"}')
    assert sent(json_schema="{}") == common_pb2.Grammar(json_schema="{}")
    assert sent(regex="a+") == common_pb2.Grammar(regex="a+")
    assert sent(lark="start: a") == common_pb2.Grammar(lark="start: a")
    assert sent(choice=["yes", "no"]) == common_pb2.Grammar(choice=common_pb2.Choices(texts=["yes", "no"]))


@pytest.mark.parametrize(("timeout", "milliseconds"), [(1.5, 1500), (0.0001, 1)])
def test_the_timeout_travels_as_the_deadline(timeout: float, milliseconds: int) -> None:
    assert generate_request("m", "x", timeout, Options()).deadline_ms == milliseconds


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("max_tokens", {"max_tokens": 2**31}),
        ("max_tokens", {"max_tokens": "many"}),
        ("seed", {"seed": 2**63}),
        ("stop", {"stop": ["\ud800"]}),
        ("beam_width", {"beam_width": 4}),
        ("logit_bias", {"logit_bias": {-1: 1.0}}),
        ("logit_bias", {"logit_bias": {1: "much"}}),
        ("banned_tokens", {"banned_tokens": [[-1]]}),
        ("banned_tokens", {"banned_tokens": [1]}),
        ("bad_words", {"bad_words": [1]}),
        ("choice", {"choice": "yes"}),
        ("choice", {"choice": [1]}),
        ("json_schema", {"json_schema": 5}),
        ("lark", {"regex": "a", "lark": "start: a"}),
    ],
)
def test_an_option_that_cannot_be_sent_is_refused_by_its_name(field: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        generate_request("m", "x", None, options)  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "prompt"),
    [
        ("prompt", "half a character: \ud800"),
        ("prompt", [-1]),
        ("prompt", [2**32]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "text": "hi"}]),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused(field: str, prompt: batonmesh.Prompt) -> None:
    for build in (lambda: count_request("m", prompt), lambda: generate_request("m", prompt, None, Options())):
        with pytest.raises(InvalidArgument) as refused:
            build()
        assert refused.value.field == field


def test_a_prompt_beyond_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TooLarge, match="prompt") as refused:
        generate_request("m", "x" * MAX_REQUEST_BYTES, None, Options())
    assert refused.value.field == "prompt"
