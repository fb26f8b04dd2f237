"""Tools on chat completions, by the unmodified OpenAI client: calls come out as calls, streamed and whole, and their
results go in. A grammar makes the simulated engine say what a model would."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from runtime.engine.simulated import SimulatedTokenizer
from runtime.mesh.local import local_mesh
from tests.services.openai.one_worker import MODEL
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import Api, serving
from tests.services.session_mesh import config

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
HELLO: list[Any] = [{"role": "user", "content": "How is it?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The HTTP API of a whole mesh."""
    async with (
        local_mesh(config(tmp_path), http_port=0) as mesh,
        AsyncOpenAI(base_url=f"{mesh.http}/v1", api_key="none", max_retries=0) as client,
        httpx.AsyncClient(base_url=mesh.http) as http,
    ):
        yield Api(mesh.http, client, http)


async def said(api: Api, text: str, **more: object) -> Any:  # noqa: ANN401 - OpenAI's overloads
    """An answer that is this text to the last character."""
    forced = {"guided_regex": re.escape(text)}
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": [WEATHER, CLOCK], "extra_body": forced}
    return await api.client.chat.completions.create(**(asked | more))


async def streamed(api: Api, text: str, **more: object) -> list[Any]:
    chunks = await said(api, text, stream=True, **more)
    return [chunk async for chunk in chunks]


async def test_a_call_comes_out_as_one_and_its_text_does_not(api: Api) -> None:
    answer = (await said(api, f"Let me look.\n{CALL}\n{CALL.replace('Paris', 'Rome')}")).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", "Let me look.")
    called = [
        (call.type, call.function.name, json.loads(call.function.arguments)) for call in answer.message.tool_calls
    ]
    assert called == [("function", "weather", {"city": "Paris"}), ("function", "weather", {"city": "Rome"})]
    assert len({call.id for call in answer.message.tool_calls}) == 2
    alone = (await said(api, CALL)).choices[0]
    assert alone.message.content is None
    plain = (await said(api, "It is <tool_call> me.")).choices[0]
    assert (plain.finish_reason, plain.message.content) == ("stop", "It is <tool_call> me.")
    assert plain.message.tool_calls is None


async def test_a_stream_has_the_text_before_a_call_and_the_call_as_one_delta(api: Api) -> None:
    chunks = await streamed(api, f"Let me look.\n{CALL}")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me look."
    (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (call.index, call.function.name, call.function.arguments) == (0, "weather", '{"city": "Paris"}')
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


async def test_a_choice_of_several_has_calls_of_its_own(api: Api) -> None:
    answer = await said(api, CALL, n=2)
    ids = [choice.message.tool_calls[0].id for choice in answer.choices]
    assert len(set(ids)) == 2
    one = await said(api, f"{CALL}\n{CALL}", parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "clock"}), ({"type": "function", "function": {"name": "clock"}}, {"clock"})],
)
async def test_a_choice_that_asks_for_a_call_gets_one(api: Api, choice: object, names: set[str]) -> None:
    """The engine says anything that its grammar allows."""
    closed: Any = {"type": "function", "function": {"name": "clock", "parameters": {"enum": [{}]}}}
    for seed in range(4):
        more = {"parallel_tool_calls": False, "seed": seed, "max_tokens": 300, "extra_body": {}}
        answer = await said(api, "", tools=[WEATHER, closed], tool_choice=choice, **more)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name in names
        assert json.loads(call.function.arguments).get("city") in ("Paris", "Rome", None)


async def test_with_the_choice_none_the_model_hears_of_no_tools_and_nothing_is_looked_for(api: Api) -> None:
    answer = (await said(api, CALL, tool_choice="none")).choices[0]
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", CALL, None)
    told = await said(api, "x")
    untold = await said(api, "x", tool_choice="none")
    assert told.usage.prompt_tokens > untold.usage.prompt_tokens + len(json.dumps(WEATHER))


async def test_calls_and_their_results_go_in_through_the_template(api: Api) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "Sunny."},
    ]
    answer = await said(api, "Sunny.", messages=messages)
    tokenizer = SimulatedTokenizer()
    for_template = call | {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    expected = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [for_template]},
        {"role": "tool", "content": "Sunny.", "tool_call_id": "call-1", "name": "weather"},
    ]
    clock = {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = [WEATHER, {"type": "function", "function": clock}]
    assert answer.usage.prompt_tokens == len(tokenizer.render_chat(expected, tools))


CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a result without a call": (
        {"messages": [*HELLO, {"role": "tool", "tool_call_id": "x", "content": ""}]},
        "messages[1].tool_call_id",
    ),
    "a result without an id": ({"messages": [*HELLO, {"role": "tool", "content": ""}]}, "messages[1].tool_call_id"),
    "an id of somebody else's": (
        {"messages": [{"role": "user", "tool_call_id": "x", "content": ""}]},
        "messages[0].tool_call_id",
    ),
    "a call without its result": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                }
            ]
        },
        "messages[1]",
    ),
    "arguments that are no object": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "[]"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a user who calls": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": "",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                }
            ]
        },
        "messages[0].tool_calls",
    ),
    "nobody says anything": ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    "a bad name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    "another kind": ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    "two of a name": ({"tools": [CLOCK, CLOCK]}, "tools"),
    "too many": ({"tools": [CLOCK] * 129}, "tools"),
    "a function that is not there": ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    "a choice that is none": ({"tool_choice": "sometimes"}, "tool_choice"),
    "a call of nothing": ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    "two grammars": ({"tool_choice": "required", "extra_body": {"guided_regex": "a"}}, "tool_choice"),
    "a schema that is none": (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "odd"}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
}


async def test_what_cannot_be_is_refused_by_its_field(api: Api) -> None:
    for case, (fields, field) in BAD.items():
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": [WEATHER]} | fields
        with pytest.raises(BadRequestError) as refused:
            await api.client.chat.completions.create(**asked)
        assert refused.value.param == field, case


class Toolless(SimulatedTokenizer):
    call_form = None  # type: ignore[assignment]  # as of a model that calls none

    def no_tools(self) -> str:
        return "its chat template does not render tools"


async def test_a_model_with_no_form_of_calls_is_given_no_tools() -> None:
    gateway = ScriptedGateway(tokenizer=Toolless())
    async with serving(gateway.role) as api:
        with pytest.raises(BadRequestError, match="does not render tools") as refused:
            await api.client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
        assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    assert not gateway.asked


async def test_a_call_that_was_cut_is_text_and_log_probabilities_stay_with_their_tokens() -> None:
    tokens = SimulatedTokenizer().encode(CALL)
    cut = [Delta(place, (Sampled(token, -0.5),), chr(token)) for place, token in enumerate(tokens[:20])]
    gateway = ScriptedGateway([*cut, Delta(20, (), "", FinishReason.LENGTH)])
    async with serving(gateway.role) as api:
        chunks = await streamed(api, "", extra_body={})
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CALL[:20]
        assert chunks[-1].choices[0].finish_reason == "length"
    whole = [Delta(place, (Sampled(token, -0.5),), chr(token)) for place, token in enumerate(tokens)]
    gateway = ScriptedGateway([*whole, Delta(len(tokens), (), "", FinishReason.STOP)])
    async with serving(gateway.role) as api:
        chunks = await streamed(api, "", logprobs=True, extra_body={})
        explained = [
            each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content
        ]
        assert "".join(each.token for each in explained) == CALL
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
