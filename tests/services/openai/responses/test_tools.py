"""Function tools in responses, by OpenAI's unmodified client: calls come out as items, streamed and whole, wait in the
store, and are resolved by what the next response says. A grammar makes the simulated engine say what a model would."""

import asyncio
import json
import re
from typing import Any

import openai
import pytest
from openai import DefaultHttpxClient, OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall

from batonmesh.v1 import session_pb2 as pb
from runtime.domain.tools import given_up
from runtime.engine.simulated import SimulatedTokenizer
from tests.services.openai.responses.conftest import Api
from tests.services.openai.responses.losing import LosingProxy

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    "strict": False,
}
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ROME = PARIS.replace("Paris", "Rome")
BOTH = f"Let me look.\n{PARIS}\n{ROME}"
USER: dict[str, object] = {"role": "user", "content": "How is it?"}


def saying(text: str, **more: object) -> dict[str, Any]:
    """What makes an answer this text to the last character."""
    forced = {"guided_regex": re.escape(text)}
    return {"tools": [WEATHER], "max_output_tokens": 400, "extra_body": forced} | more


async def said(api: Api, text: str, asked: Any = "How is it?", **more: object) -> Response:  # noqa: ANN401 - as given
    return await api.ask("", input=asked, **saying(text, **more))


def calls(response: Response) -> list[ResponseFunctionToolCall]:
    return [item for item in response.output if item.type == "function_call"]


def result(call: ResponseFunctionToolCall, output: Any = "Sunny.") -> dict[str, Any]:  # noqa: ANN401 - text or parts
    return {"type": "function_call_output", "call_id": call.call_id, "output": output}


async def items_of(api: Api, conversation: str) -> list[Any]:
    return [each async for each in api.client.conversations.items.list(conversation, order="asc")]


async def test_calls_come_out_as_items_beside_the_text(api: Api) -> None:
    made = await said(api, BOTH)
    assert (made.status, made.incomplete_details, made.output_text) == ("completed", None, "Let me look.")
    assert [item.type for item in made.output] == ["message", "function_call", "function_call"]
    assert [(call.name, json.loads(call.arguments)["city"], call.status) for call in calls(made)] == [
        ("weather", "Paris", "completed"),
        ("weather", "Rome", "completed"),
    ]
    assert len({item.id for item in made.output} | {call.call_id for call in calls(made)}) == 5
    (tool,) = made.tools
    assert tool.model_dump(exclude_none=True) == WEATHER
    assert (made.tool_choice, made.parallel_tool_calls) == ("auto", True)
    assert await api.client.responses.retrieve(made.id) == made
    alone = await said(api, PARIS, parallel_tool_calls=False)
    assert ([item.type for item in alone.output], alone.parallel_tool_calls) == (["function_call"], False)
    late = await said(api, f"{PARIS}And so on.")
    assert [item.type for item in late.output] == ["function_call", "message"]
    plain = await said(api, "It is <tool_call> me.")
    assert ([item.type for item in plain.output], plain.output_text) == (["message"], "It is <tool_call> me.")


@pytest.mark.parametrize("text", [BOTH, PARIS, f"{PARIS}And so on.\n{ROME}", "Nothing to look at."])
async def test_a_stream_has_the_events_of_openai_and_can_be_resumed_after_each(api: Api, text: str) -> None:
    stream = await api.client.responses.create(model="simulated", input="How is it?", stream=True, **saying(text))
    events = [event async for event in stream]
    for event in events:
        type(event).model_validate(event.model_dump(warnings="error", by_alias=True), strict=True)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    final = events[-1].response
    assert (events[-1].type, final) == ("response.completed", await api.client.responses.retrieve(final.id))
    done = {event.output_index: event.item for event in events if event.type == "response.output_item.done"}
    assert [done[place] for place in range(len(done))] == final.output
    for place, item in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == place]
        assert own[0].type == "response.output_item.added"
        assert own[0].item.status == "in_progress"
        if item.type != "function_call":
            continue
        assert [event.type.removeprefix("response.") for event in own] == [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ]
        assert own[0].item.model_dump() == item.model_dump() | {"arguments": "", "status": "in_progress"}
        assert {own[1].item_id, own[2].item_id} == {item.id}
        assert own[1].delta == own[2].arguments == item.arguments
    for after in range(len(events)):
        again = await api.client.responses.retrieve(final.id, stream=True, starting_after=after)
        assert [event async for event in again] == events[after + 1 :]


async def test_results_resolve_the_calls_of_the_response_before_in_any_order(api: Api) -> None:
    """Invariant 9."""
    one = await said(api, BOTH)
    first, second = calls(one)
    parts = [{"type": "input_text", "text": "Ra"}, {"type": "input_text", "text": "in."}]
    with pytest.raises(openai.ConflictError, match=f"no result yet of {first.call_id}") as missing:
        await said(api, "x", [result(second)], previous_response_id=one.id)
    assert missing.value.response.headers["x-should-retry"] == "false"
    two = await said(api, "Fine.", [result(second, parts), result(first)], previous_response_id=one.id)
    assert (two.status, two.output_text) == ("completed", "Fine.")
    listed = (await api.client.responses.input_items.list(two.id, order="asc")).data
    assert [(item.type, item.call_id, item.output) for item in listed] == [  # type: ignore[union-attr]  # they are results
        ("function_call_output", first.call_id, "Sunny."),
        ("function_call_output", second.call_id, "Rain."),
    ]
    three = await said(api, "Bye.", "Thanks.", previous_response_id=two.id)
    assert three.usage is not None
    assert three.usage.input_tokens_details.cached_tokens > 0
    for late in (result(first), {**result(first), "call_id": "call_none"}):
        with pytest.raises(openai.ConflictError, match="does not wait here") as refused:
            await said(api, "x", [USER, late], previous_response_id=two.id)
        assert refused.value.param == "input[1].call_id"


async def test_a_refused_turn_leaves_no_branch_behind(api: Api) -> None:
    one = await said(api, BOTH)
    await said(api, "Fine.", [result(call) for call in calls(one)], previous_response_id=one.id)
    before = api.rows()
    with pytest.raises(openai.ConflictError, match="no result yet"):
        await said(api, "x", [result(calls(one)[0])], previous_response_id=one.id)
    assert {table: count for table, count in api.rows().items() if table not in ("lines", "notices")} == {
        table: count for table, count in before.items() if table not in ("lines", "notices")
    }


async def test_in_a_conversation_a_result_counts_once_and_a_late_one_is_a_conflict(api: Api) -> None:
    talk = (await api.client.conversations.create()).id
    one = await said(api, BOTH, conversation=talk)
    first, second = calls(one)
    twice = [result(first), result(second), result(first, "Snow.")]
    with pytest.raises(openai.ConflictError, match="second result") as refused:
        await said(api, "x", twice, conversation=talk)
    assert refused.value.param == "input[2].call_id"
    with pytest.raises(openai.ConflictError, match="called tools"):
        await api.client.conversations.items.create(talk, items=[USER])  # type: ignore[list-item]  # as a person writes
    two = await said(api, "Fine.", [result(second, "Rain."), result(first)], conversation=talk)
    with pytest.raises(openai.ConflictError, match="does not wait here"):
        await said(api, "x", [result(first)], conversation=talk)
    listed = await items_of(api, talk)
    assert [item.type for item in listed] == [
        "message", "message", "function_call", "function_call", "function_call_output", "function_call_output",
        "message",
    ]  # fmt: skip
    assert [item.id for item in listed[1:4]] == [item.id for item in one.output]
    assert [(item.call_id, item.output) for item in listed[4:6]] == [
        (first.call_id, "Sunny."),
        (second.call_id, "Rain."),
    ]
    assert listed[6].id == two.output[0].id
    items = api.client.conversations.items
    for limit in (1, 2, 3):
        assert [each async for each in items.list(talk, order="asc", limit=limit)] == listed
        assert [each async for each in items.list(talk, order="desc", limit=limit)] == listed[::-1]
    for each in listed:
        assert await items.retrieve(each.id, conversation_id=talk) == each
    for unknown in (listed[2].id + "9", listed[2].id.replace("fc_", "msg_"), listed[0].id.replace("msg_", "fco_")):
        with pytest.raises(openai.NotFoundError):
            await items.retrieve(unknown, conversation_id=talk)
        with pytest.raises(openai.NotFoundError):
            await items.list(talk, after=unknown)


async def test_who_says_something_else_gives_up_the_calls_that_have_no_result(api: Api) -> None:
    talk = (await api.client.conversations.create()).id
    first, second = calls(await said(api, BOTH, conversation=talk))
    await said(api, "Fine.", [USER, result(second)], conversation=talk)
    told = [item.output for item in await items_of(api, talk) if item.type == "function_call_output"]
    assert told == [given_up(), "Sunny."]
    with pytest.raises(openai.ConflictError, match="does not wait here"):
        await said(api, "x", [result(first)], conversation=talk)


async def test_results_by_grpc_and_by_http_resolve_the_same_calls(api: Api) -> None:
    talk = (await api.client.conversations.create()).id
    session = f"sess-{talk.removeprefix('conv_')}"
    first, second = calls(await said(api, BOTH, conversation=talk))
    await api.user.stub.SubmitToolResults(
        pb.SubmitToolResultsRequest(session=session, results=[pb.ToolResult(call=first.call_id, output="Hail.")])
    )
    with pytest.raises(openai.ConflictError, match="has its result already"):
        await said(api, "x", [result(first), result(second)], conversation=talk)
    await said(api, "Fine.", [result(second)], conversation=talk)
    told = [item.output for item in await items_of(api, talk) if item.type == "function_call_output"]
    assert told == ["Hail.", "Sunny."]


async def test_a_history_that_is_sent_along_needs_no_response_before(api: Api) -> None:
    """As the client gave it, and put together by hand."""
    one = await said(api, BOTH)
    given = (await api.client.responses.retrieve(one.id)).output
    history = [USER, *given, *(result(call) for call in calls(one)), {"role": "user", "content": "So?"}]
    told = await said(api, "Fine.", history)
    tokenizer = SimulatedTokenizer()

    def called(call: ResponseFunctionToolCall) -> dict[str, object]:
        return {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }

    def brought(call: ResponseFunctionToolCall) -> dict[str, object]:
        return {"role": "tool", "content": "Sunny.", "tool_call_id": call.call_id, "name": "weather"}

    messages: list[dict[str, object]] = [
        USER,
        {"role": "assistant", "content": "Let me look.", "tool_calls": [called(call) for call in calls(one)]},
        *map(brought, calls(one)),
        {"role": "user", "content": "So?"},
    ]
    function = {name: WEATHER[name] for name in ("name", "description", "parameters")}
    expected = len(tokenizer.render_chat(messages, [{"type": "function", "function": function}]))
    assert told.usage is not None
    assert told.usage.input_tokens == expected
    unstored = await said(api, "Fine.", history, store=False)
    assert unstored.usage is not None
    assert unstored.usage.input_tokens == expected
    by_hand: list[dict[str, Any]] = [
        USER,
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "a", "output": "Sunny."},
    ]
    talk = await api.client.conversations.create(items=by_hand)  # type: ignore[arg-type]  # as a person writes them
    assert [item.type for item in await items_of(api, talk.id)] == [each.get("type", "message") for each in by_hand]
    assert (await said(api, "Fine.", conversation=talk.id)).output_text == "Fine."


async def test_a_response_that_is_not_stored_calls_too(api: Api) -> None:
    made = await said(api, BOTH, store=False)
    assert [item.type for item in made.output] == ["message", "function_call", "function_call"]
    assert set(api.rows().values()) == {0}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
async def test_a_choice_that_asks_for_a_call_gets_one(api: Api, choice: object) -> None:
    closed = {**WEATHER, "parameters": {"enum": [{"city": "Rome"}]}, "strict": True}
    more = {"tools": [closed], "tool_choice": choice, "parallel_tool_calls": False, "extra_body": {}}
    made = await said(api, "", **more)
    assert [(call.name, json.loads(call.arguments)) for call in calls(made)] == [("weather", {"city": "Rome"})]
    told = made.tool_choice if isinstance(made.tool_choice, str) else made.tool_choice.model_dump()
    assert (told, made.tools[0].model_dump()["strict"]) == (choice, True)


async def test_without_tools_or_with_the_choice_none_nothing_is_called(api: Api) -> None:
    one = await said(api, PARIS)
    silent = await said(api, PARIS, [result(calls(one)[0])], tools=[], previous_response_id=one.id)
    assert ([item.type for item in silent.output], silent.output_text, silent.tools) == (["message"], PARIS, [])
    none = await said(api, PARIS, tool_choice="none")
    assert ([item.type for item in none.output], none.tool_choice) == (["message"], "none")


async def test_a_call_that_was_cut_is_text_of_an_incomplete_response(api: Api) -> None:
    made = await said(api, PARIS, max_output_tokens=20)
    assert made.status == "incomplete"
    assert (made.output_text, [item.type for item in made.output]) == (PARIS[:20], ["message"])


async def test_the_whole_loop_is_one_turn_a_step_although_answers_are_lost(api: Api) -> None:
    """By the client that waits, by its helper for streams too; each answer is lost once."""
    proxy = LosingProxy(api.url)
    async with proxy.serving():

        def loop() -> tuple[str, list[str], str]:
            with OpenAI(
                base_url=proxy.url, api_key="none", max_retries=2, http_client=DefaultHttpxClient(verify=False)
            ) as client:
                talk = client.conversations.create().id
                proxy.losing = 1
                one = client.responses.create(model="simulated", input="How?", conversation=talk, **saying(BOTH))
                proxy.losing = 1
                results: Any = [result(call, call.arguments) for call in calls(one)]
                with client.responses.stream(
                    model="simulated", input=results, conversation=talk, **saying(ROME)
                ) as stream:
                    kinds = [event.type for event in stream]
                    two = stream.get_final_response()
                assert "response.function_call_arguments.done" in kinds
                proxy.losing = 1
                last: Any = [result(call, call.arguments) for call in calls(two)]
                three = client.responses.create(model="simulated", input=last, conversation=talk, **saying("Fine."))
                return talk, [one.output_text, two.output_text], three.output_text

        talk, texts, answer = await asyncio.to_thread(loop)
    assert (texts, answer) == (["Let me look.", ""], "Fine.")
    assert (await api.user.branch(f"sess-{talk.removeprefix('conv_')}")).turns == 3
    kinds = [item.type for item in await items_of(api, talk)]
    assert kinds.count("function_call") == kinds.count("function_call_output") == 3


async def test_so_it_is_from_response_to_response(api: Api) -> None:
    proxy = LosingProxy(api.url)
    async with proxy.serving():
        client = api.client.with_options(base_url=proxy.url)
        unlucky = Api(proxy.url, client, api.user, api.file)
        proxy.losing = 1
        one = await said(unlucky, BOTH)
        proxy.losing = 1
        results: Any = [result(call) for call in calls(one)]
        two = await said(unlucky, "Fine.", results, previous_response_id=one.id)
    assert two.output_text == "Fine."
    assert (api.rows()["turns"], api.rows()["sessions"], api.rows()["branches"]) == (2, 1, 1)


async def test_tools_that_change_are_refused_where_the_template_tells_them_first(api: Api) -> None:
    one = await said(api, "Hello.")
    with pytest.raises(openai.ConflictError, match="tells them at a conversation's beginning") as refused:
        await said(api, "x", tools=[WEATHER | {"name": "clock"}], previous_response_id=one.id)
    assert refused.value.param == "tools"
