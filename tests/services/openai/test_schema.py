"""Every field of a request is read or refused by its name: nothing is ignored."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsBase

from runtime.domain.grammar import ANY_OBJECT, Grammar, GrammarKind
from runtime.domain.sampling import Penalties
from runtime.domain.sequence import Sampling
from runtime.errors import BatonError, InvalidArgument, NotSupported
from runtime.services.openai.body import parse_body
from runtime.services.openai.schema import ChatRequest, CompletionRequest, GenerationRequest

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: object) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def completion(**fields: object) -> CompletionRequest:
    return parse_body(CompletionRequest, json.dumps({"model": "m", "prompt": "hello"} | fields).encode())


def test_no_field_that_the_client_library_knows_is_ignored() -> None:
    odd = [[["odd"]]]
    for field in chat_params.CompletionCreateParamsBase.__annotations__:
        with pytest.raises(InvalidArgument, match=field.replace("messages", r"messages\[0\]")):
            chat(**{field: odd})
    for field in CompletionCreateParamsBase.__annotations__:
        with pytest.raises(InvalidArgument, match=field):
            completion(**{field: odd})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 3),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("store", True),
        ("service_tier", "flex"),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("verbosity", "high"),
        ("moderation", {"model": "omni"}),
        ("web_search_options", {}),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        ("structured_outputs", {"json": {}}),
        ("chat_template", "{{ x }}"),
        ("echo", True),
    ],
)
def test_what_is_not_supported_yet_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(NotSupported, match=f"^{field} is not supported yet") as refusal:
        chat(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize("value", [{"suffix": "x"}, {"prompt": ["a", "b"]}])
def test_what_completions_do_not_support_yet_is_refused_by_name(value: dict[str, Any]) -> None:
    (field,) = value
    with pytest.raises(NotSupported, match=f"^{field} .*not supported yet") as refusal:
        completion(**value)
    assert refusal.value.field == field


def test_options_that_bend_the_distribution_are_read() -> None:
    asked = completion(
        min_p=0.1,
        typical_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={"50256": -100, "7": 1.5},
        min_tokens=3,
        banned_tokens=[[1, 2], [3]],
        bad_words=["x"],
    )
    assert asked.bad_words == ["x"]
    assert asked.sampling(4, 9) == Sampling(
        max_tokens=4,
        seed=9,
        min_p=0.1,
        typical_p=0.9,
        penalties=Penalties(1.1, -1, 0.5),
        logit_bias=((7, 1.5), (50256, -100.0)),
        min_tokens=3,
        banned_tokens=((1, 2), (3,)),
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ),
        ({"guided_json": SCHEMA}, Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Grammar(GrammarKind.REGEX, "a+")),
        ({"guided_choice": ["yes", "no"]}, Grammar(GrammarKind.CHOICE, '["yes", "no"]')),
        ({"guided_grammar": "start: /a/"}, Grammar(GrammarKind.LARK, "start: /a/")),
    ],
)
def test_what_an_answer_must_match_is_read(fields: dict[str, Any], grammar: Grammar | None) -> None:
    for asked in (chat(**fields), completion(**fields)):
        assert asked.sampling(4, 9).grammar == grammar
        assert asked.called("grammar") == ("grammar" if grammar is None else next(iter(fields)))


def test_values_that_ask_for_nothing_are_accepted() -> None:
    neutral: dict[str, Any] = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "user": "u-1",
        "metadata": {"run": "7"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "stream_options": None,
    }
    assert chat(**neutral).sampling(4, 9) == chat().sampling(4, 9) == Sampling(max_tokens=4, seed=9)
    nulls = dict.fromkeys(set(ChatRequest.model_fields) - {"model", "messages"})
    assert chat(**nulls).sampling(4, 9) == chat().sampling(4, 9)


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"temprature": 1}, "temprature", "unknown field temprature"),
        ({"stream_options": {"usage": True}, "stream": True}, "stream_options.usage", "unknown field"),
        ({"model": None}, "model", "must be a valid string, got null"),
        ({"temperature": "hot"}, "temperature", "must be a valid number"),
        ({"temperature": True}, "temperature", "must be a valid number, got true"),
        ({"max_tokens": 0}, "max_tokens", "must be greater than or equal to 1, got 0"),
        ({"max_completion_tokens": -3}, "max_completion_tokens", "got -3"),
        ({"max_tokens": 1.5}, "max_tokens", "must be a valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "send one of them"),
        ({"stop": [1]}, "stop", "must be a string or a list of strings"),
        ({"stop_token_ids": [3, -1]}, "stop_token_ids[1]", "greater than or equal to 0"),
        ({"logit_bias": [1]}, "logit_bias", "must be an object"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as its keys, got 'x'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids as its keys"),
        ({"logit_bias": {"01": 1}}, "logit_bias", "token ids as its keys"),
        ({"logit_bias": {"5": True}}, "logit_bias", "numbers up to 100 as its values, which token 5 has not"),
        ({"logit_bias": {"5": 10**400}}, "logit_bias", "numbers up to 100"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "at most 1024 tokens, got 1025"),
        ({"banned_tokens": [[]]}, "banned_tokens[0]", "at least 1 item"),
        ({"banned_tokens": [[1]] * 257}, "banned_tokens", "at most 256 items"),
        ({"banned_tokens": [[1] * 65]}, "banned_tokens[0]", "at most 64 items"),
        ({"bad_words": ["x"] * 65}, "bad_words", "at most 64 items"),
        ({"bad_words": [1]}, "bad_words[0]", "valid string"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 17}, "n", "less than or equal to 16, got 17"),
        ({"n": True}, "n", "valid integer"),
        ({"min_p": "x"}, "min_p", "valid number"),
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {"type": "yaml"}}, "response_format", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "lacks json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format", "name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
            "response_format",
            "object as json_schema.schema",
        ),
        ({"guided_json": 5}, "guided_json", "must be a JSON schema"),
        ({"guided_regex": ""}, "guided_regex", "must be a regular expression"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "list of strings"),
        ({"guided_grammar": []}, "guided_grammar", "must be a grammar"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "guided_regex and guided_json are both there"),
        ({"min_tokens": 1.5}, "min_tokens", "valid integer"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs to be true"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream to be true"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "valid list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is required"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string or a list of text parts"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "must be one of system"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id", "is required"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "'custom' is not supported yet, only function"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "of type allowed_tools is not supported yet"),
        ({"messages": [{"role": "user", "name": "Ann", "content": "x"}]}, "messages[0].name", "not supported yet"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "'image_url' is not supported yet, only text",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}], "content": None}]},
            "messages[0].tool_calls[0].type",
            "is required",
        ),
    ],
)
def test_a_field_at_fault_is_named_with_what_it_must_be(fields: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        chat(**fields)
    assert refusal.value.field == field
    assert rule in refusal.value.message


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("", "must not be empty"),
        ([], "must not be empty"),
        ([""], "must not be empty"),
        (None, "must be a string, a list of token ids"),
        ([1, "a"], "must be a string, a list of token ids"),
        ([1.5], "must be a string, a list of token ids"),
        ([True], "must be a string, a list of token ids"),
        ([[1], [2]], "several prompts is not supported yet: send one, not 2"),
    ],
)
def test_a_prompt_is_one_text_or_one_list_of_token_ids(prompt: object, rule: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        completion(prompt=prompt)
    assert refusal.value.field == "prompt"
    assert rule in refusal.value.message


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"", "EOF"),
        (b'{"model": ', "EOF"),
        (b"[1, 2]", "must be a JSON object"),
        (b'{"model": "m", "prompt": "x", "temperature": NaN}', "not JSON"),
        (b'{"model": "m", "prompt": "x", "temperature": -Infinity}', "not JSON"),
        (b'{"model": "m", "prompt": "x\xff"}', "not JSON in UTF-8"),
        (b'{"model": "m", "prompt": "\\ud800"}', "not JSON in UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "not JSON"),
    ],
)
def test_a_body_that_is_not_json_is_refused_as_a_whole(body: bytes, rule: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        parse_body(CompletionRequest, body)
    assert refusal.value.field == "body"
    assert rule in refusal.value.message


def test_a_number_too_large_for_a_float_is_not_infinite() -> None:
    with pytest.raises(InvalidArgument, match="temperature must be a finite number"):
        parse_body(CompletionRequest, b'{"model": "m", "prompt": "x", "temperature": 1e999}')


def test_a_refusal_never_repeats_a_conversation() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        chat(messages=[{"role": "user", "content": "my secret", "nane": "my secret"}])
    assert "secret" not in refusal.value.message


KINDS: tuple[type[GenerationRequest], ...] = (ChatRequest, CompletionRequest)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_value_in_any_field_is_read_or_refused_in_that_field(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    field = data.draw(st.sampled_from(sorted(kind.model_fields)))
    fields = {"model": "m", "messages" if kind is ChatRequest else "prompt": HELLO if kind is ChatRequest else "x"}
    body = json.dumps(fields | {field: data.draw(json_values)})
    refused: BatonError | None = None
    try:
        asked = parse_body(kind, body.encode())
    except BatonError as error:
        refused = error
    if refused is None:
        assert asked.sampling(1, 1).max_tokens >= 1
    else:
        assert refused.status.http == 400
        assert refused.field is not None
        assert refused.field.startswith(field)
