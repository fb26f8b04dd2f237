"""Tool calls of sessions and of Generate by gRPC: they come out, wait in the store, and go on once all are resolved. A
grammar makes the simulated engine say what a model would."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from openai import AsyncOpenAI, ConflictError

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from batonmesh.v1 import session_pb2 as pb
from runtime.engine.simulated import SimulatedTokenizer
from runtime.mesh.local import LocalMesh, local_mesh
from tests.services.grpc_mesh import told
from tests.services.session_mesh import Seen, User, config, run, user

PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ROME = PARIS.replace("Paris", "Rome")
SAID = f"Let me look.\n{PARIS}\n{ROME}"
WEATHER = inference_pb2.Tool(name="weather", description="Tells the weather.", parameters='{"type": "object"}')
TOOLS = inference_pb2.Tools(tools=[WEATHER])


def saying(text: str) -> common_pb2.Sampling:
    """An answer that is this text to the last character."""
    return common_pb2.Sampling(grammar=common_pb2.Grammar(regex=re.escape(text)), max_tokens=400)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[LocalMesh]:
    async with local_mesh(config(tmp_path), http_port=0) as mesh:
        yield mesh


@pytest.fixture
async def somebody(mesh: LocalMesh) -> AsyncIterator[User]:
    async with user(mesh.grpc) as somebody:
        yield somebody


async def called(user: User, session: str, text: str = SAID, **more: object) -> Seen:
    """A turn that made calls."""
    asked = {"tools": TOOLS, "sampling": saying(text)} | more
    return await user.run(session, "How is it?", None, **asked)


async def pending(user: User, session: str) -> list[pb.PendingCall]:
    return [*(await user.stub.ListToolCalls(pb.ListToolCallsRequest(session=session), timeout=20)).calls]


def submission(session: str, *results: pb.ToolResult, **more: object) -> pb.SubmitToolResultsRequest:
    return pb.SubmitToolResultsRequest(session=session, results=results, **more)  # type: ignore[arg-type]


async def field_of(asking: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asking  # type: ignore[misc]
    return told(refused.value)["baton-error-field"]


async def test_a_turn_that_calls_waits_until_all_is_resolved_and_goes_on_with_the_results(somebody: User) -> None:
    """Invariant 9."""
    session = await somebody.create()
    seen = await called(somebody, session)
    assert (seen.text, seen.end.stop_reason) == ("Let me look.", pb.STOP_REASON_TOOL_CALLS)
    first, second = seen.end.tool_calls
    assert [json.loads(call.arguments) for call in (first, second)] == [{"city": "Paris"}, {"city": "Rome"}]
    assert [each.call for each in await pending(somebody, session)] == [first, second]
    assert await field_of(somebody.run(session, items=[])) == "items"
    out = await somebody.stub.SubmitToolResults(submission(session, pb.ToolResult(call=second.id, output="Rain.")))
    assert [each.state for each in out.calls] == [pb.TOOL_CALL_STATE_PENDING, pb.TOOL_CALL_STATE_ANSWERED]
    assert await field_of(somebody.run(session, items=[])) == "items"
    again = submission(session, pb.ToolResult(call=second.id, output="Snow."))
    assert await field_of(somebody.stub.SubmitToolResults(again)) == "results[0].call"
    await somebody.stub.SubmitToolResults(submission(session, pb.ToolResult(call=first.id, output="Sunny.")))
    after = await somebody.run(session, items=[], sampling=saying("Sunny and rain."))
    assert (after.text, after.end.stop_reason) == ("Sunny and rain.", pb.STOP_REASON_END_TURN)
    assert await somebody.said(session) == ["How is it?", "Let me look.", "Sunny.", "Rain.", "Sunny and rain."]
    results: list[dict[str, object]] = [
        {"role": "tool", "content": text, "tool_call_id": call.id, "name": "weather"}
        for call, text in ((first, "Sunny."), (second, "Rain."))
    ]
    delta = SimulatedTokenizer().render_delta([], results)
    assert after.end.usage.prompt_tokens == seen.end.usage.prompt_tokens + len(seen.tokens) + len(delta)
    late = submission(session, pb.ToolResult(call=first.id, output="Snow."))
    assert await field_of(somebody.stub.SubmitToolResults(late)) == "results[0].call"


async def test_a_stream_with_calls_resumes_after_every_message(somebody: User) -> None:
    session = await somebody.create()
    asked = run(session, "How is it?", tools=TOOLS, sampling=saying(f"{SAID}\n<tool_call>"))
    messages = [message async for message in somebody.stub.RunTurn(asked)]
    text = "".join(message.tokens.text for message in messages) + messages[-1].ended.rest
    assert text == "Let me look.\n<tool_call>"
    calls = [call for message in messages for call in message.tokens.tool_calls]
    assert calls == [*messages[-1].ended.tool_calls]
    assert len(calls) == 2
    for message in messages:
        rest = pb.ResumeTurnRequest(session=session, turn=messages[0].opened.id, after_seq=message.seq)
        assert [each async for each in somebody.stub.ResumeTurn(rest)] == messages[message.seq + 1 :]


async def test_of_all_who_resolve_and_go_on_each_gets_the_same_turn(somebody: User) -> None:
    session = await somebody.create()
    seen = await called(somebody, session)
    go_on = pb.RunTurnRequest(sampling=saying("Done."))
    asked = [
        submission(session, pb.ToolResult(call=call.id, output="x"), go_on=go_on, idempotency_key=call.id)
        for call in seen.end.tool_calls
    ]
    answers = await asyncio.gather(*(somebody.stub.SubmitToolResults(each) for each in asked))
    turns = {answer.turn.id for answer in answers if answer.HasField("turn")}
    assert len(turns) == 1
    (turn,) = turns
    assert (await somebody.resume(session, turn)).text == "Done."
    again = [await somebody.stub.SubmitToolResults(each) for each in asked]
    assert {answer.turn.id for answer in again} == turns, "a lost answer is given again, and no turn is run twice"
    assert (await somebody.branch(session)).turns == 2


async def test_a_fork_at_the_same_calls_goes_on_with_a_turn_of_its_own(somebody: User) -> None:
    """Invariant 10: what becomes of calls on a fork leaves the parent as it is, and the other way round."""
    session = await somebody.create()
    calls = (await called(somebody, session)).end.tool_calls
    await somebody.stub.Fork(pb.ForkRequest(session=session, name="other"))
    results = [pb.ToolResult(call=call.id, output="x") for call in calls]
    turns = []
    for branch in ("main", "other"):
        asked = submission(session, *results, branch=branch, go_on=pb.RunTurnRequest(sampling=saying(branch)))
        turn = (await somebody.stub.SubmitToolResults(asked)).turn
        assert (turn.branch, (await somebody.resume(session, turn.id)).text) == (branch, branch)
        turns.append(turn.id)
    state = await somebody.stub.GetSession(pb.GetSessionRequest(session=session))
    assert [branch.head for branch in state.branches] == turns


async def test_a_user_who_says_something_else_gives_up_what_is_open(somebody: User) -> None:
    session = await somebody.create()
    seen = await called(somebody, session)
    first, second = seen.end.tool_calls
    await somebody.stub.SubmitToolResults(submission(session, pb.ToolResult(call=second.id, output="Rain.")))
    await somebody.run(session, "Never mind.", sampling=saying("As you like."))
    said = await somebody.said(session)
    assert json.loads(said[2])["error"]["code"] == "cancelled"
    assert said[3:] == ["Rain.", "Never mind.", "As you like."]
    late = submission(session, pb.ToolResult(call=first.id, output="Sunny."))
    assert await field_of(somebody.stub.SubmitToolResults(late)) == "results[0].call"


async def test_what_nobody_answers_in_time_is_told_as_an_error(somebody: User) -> None:
    session = await somebody.create()
    tools = inference_pb2.Tools(tools=[WEATHER], timeout_ms=1)
    await called(somebody, session, tools=tools)
    await asyncio.sleep(0.01)
    assert {each.state for each in await pending(somebody, session)} == {pb.TOOL_CALL_STATE_TIMED_OUT}
    await somebody.run(session, items=[], sampling=saying("Nobody knows."))
    errors = [json.loads(each)["error"]["code"] for each in (await somebody.said(session))[2:4]]
    assert errors == ["timed_out", "timed_out"]


async def test_somebody_may_have_to_allow_a_call(somebody: User) -> None:
    session = await somebody.create()
    tools = inference_pb2.Tools(tools=[inference_pb2.Tool(name="weather", needs_approval=True)])
    seen = await called(somebody, session, tools=tools)
    first, second = seen.end.tool_calls
    early = submission(session, pb.ToolResult(call=first.id, output="x"))
    assert await field_of(somebody.stub.SubmitToolResults(early)) == "results[0].call"
    verdicts = pb.ToolResult(call=first.id, approve=True), pb.ToolResult(call=second.id, deny="Not there.")
    out = await somebody.stub.SubmitToolResults(submission(session, *verdicts))
    assert [each.state for each in out.calls] == [pb.TOOL_CALL_STATE_PENDING, pb.TOOL_CALL_STATE_DENIED]
    await somebody.stub.SubmitToolResults(early)
    await somebody.run(session, items=[], sampling=saying("Done."))
    assert json.loads((await somebody.said(session))[3])["error"] == {"code": "denied", "message": "Not there."}


async def test_other_tools_are_refused_where_the_model_would_not_hear_of_them(somebody: User) -> None:
    session = await somebody.create()
    await called(somebody, session, "Hello.")
    other = inference_pb2.Tools(tools=[inference_pb2.Tool(name="clock")])
    assert await field_of(somebody.run(session, tools=other)) == "tools"
    # Without any they are those of before.
    again = await somebody.run(session, sampling=saying(PARIS))
    assert len(again.end.tool_calls) == 1


async def test_an_interrupted_turn_keeps_the_calls_that_it_made(somebody: User) -> None:
    session = await somebody.create()
    cut = await called(
        somebody,
        session,
        sampling=common_pb2.Sampling(grammar=saying(SAID).grammar, max_tokens=len(f"Let me look.\n{PARIS}") + 5),
    )
    assert cut.end.stop_reason == pb.STOP_REASON_LENGTH
    assert len(cut.end.tool_calls) == len(await pending(somebody, session)) == 1


BAD: dict[str, tuple[str, dict[str, object]]] = {
    "no results": ("results", {"results": []}),
    "an unknown call": ("results[0].call", {"results": [pb.ToolResult(call="none", output="")]}),
    "no verdict": ("results[0]", {"results": [pb.ToolResult(call="c")]}),
    "an approval that is none": ("results[0]", {"results": [pb.ToolResult(call="c", approve=False)]}),
    "two of a call": ("results[1].call", {"results": [pb.ToolResult(call="c", output="")] * 2}),
    "a result too large": ("results[0]", {"results": [pb.ToolResult(call="c", output="x" * ((1 << 20) + 1))]}),
    "items to go on with": (
        "go_on.items",
        {
            "results": [pb.ToolResult(call="c", output="")],
            "go_on": pb.RunTurnRequest(items=[inference_pb2.ChatMessage(role="user", content="x")]),
        },
    ),
    "another session": ("session", {"session": "sess-none", "results": [pb.ToolResult(call="c", output="")]}),
}
BAD_TURNS: dict[str, tuple[str, dict[str, object]]] = {
    "a result of no call": (
        "items[0].tool_call_id",
        {"items": [inference_pb2.ChatMessage(role="tool", tool_call_id="c")]},
    ),
    "a call without its result": (
        "items[0].tool_calls",
        {
            "items": [
                inference_pb2.ChatMessage(
                    role="assistant", tool_calls=[inference_pb2.ToolCall(id="c", name="f", arguments="{}")]
                )
            ]
        },
    ),
    "a bad name": ("tools[0].name", {"tools": inference_pb2.Tools(tools=[inference_pb2.Tool(name="a b")])}),
    "bad parameters": (
        "tools[0].parameters",
        {"tools": inference_pb2.Tools(tools=[inference_pb2.Tool(name="f", parameters="[]")])},
    ),
    "a function that is not there": ("tool_choice", {"tools": inference_pb2.Tools(tools=[WEATHER], function="f")}),
    "an unknown choice": ("tool_choice", {"tools": inference_pb2.Tools(tools=[WEATHER], choice=9)}),  # type: ignore[arg-type]
    "no time": ("tool_timeout_ms", {"tools": inference_pb2.Tools(tools=[WEATHER], timeout_ms=0)}),
}


async def test_bad_input_is_refused_by_its_field(somebody: User) -> None:
    session = await somebody.create()
    for case, (field, change) in BAD.items():
        request = pb.SubmitToolResultsRequest(**({"session": session} | change))  # type: ignore[arg-type]
        assert await field_of(somebody.stub.SubmitToolResults(request)) == field, case
    for case, (field, change) in BAD_TURNS.items():
        assert await field_of(somebody.run(session, "Hello.", None, **change)) == field, case
    assert (await somebody.branch(session)).turns == 0


async def test_chat_completions_on_a_session_resolve_calls_with_what_they_say(mesh: LocalMesh) -> None:
    """The unmodified client sends what is new: the results."""
    tool = {"type": "function", "function": {"name": "weather"}}
    async with user(mesh.grpc) as somebody, AsyncOpenAI(base_url=f"{mesh.http}/v1", api_key="none") as client:
        session = await somebody.create()

        async def ask(text: str, *messages: object) -> object:
            return await client.chat.completions.create(
                model="simulated",
                messages=messages,  # type: ignore[arg-type]
                tools=[tool],  # type: ignore[list-item]
                extra_body={"guided_regex": re.escape(text)},
                extra_headers={"x-baton-session": session},
            )

        answer = (await ask(SAID, {"role": "user", "content": "How is it?"})).choices[0]  # type: ignore[attr-defined]
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", "Let me look.")
        calls = answer.message.tool_calls
        assert [call.id for call in calls] == [each.call.id for each in await pending(somebody, session)]
        results = [{"role": "tool", "tool_call_id": call.id, "content": f"{call.id}!"} for call in calls]
        with pytest.raises(ConflictError, match="no result yet"):
            await ask("x", results[0])
        await ask("Fine.", *results)
        assert (await somebody.said(session))[2:] == [f"{call.id}!" for call in calls] + ["Fine."]
        with pytest.raises(ConflictError, match="does not wait here") as late:
            await ask("x", results[0])
        assert late.value.param == "messages[0].tool_call_id"


async def test_generate_gives_calls_beside_its_text(mesh: LocalMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.grpc) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        chat = inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="How is it?")])
        request = inference_pb2.GenerateRequest(
            model="simulated", prompt=inference_pb2.Prompt(chat=chat), tools=TOOLS, sampling=saying(SAID), n=2
        )
        messages = [message async for message in stub.Generate(request, timeout=30)]
        final = messages[-1].final
        text = "".join(event.text for message in messages for event in message.events if event.choice == 1)
        assert text + final.choices[1].text == "Let me look."
        assert [choice.finish_reason for choice in final.choices] == [common_pb2.FINISH_REASON_TOOL_CALLS] * 2
        made = [(call.choice, call.call.arguments) for message in messages for call in message.tool_calls]
        assert sorted(made) == [(n, f'{{"city": "{city}"}}') for n in (0, 1) for city in ("Paris", "Rome")]
        counted = inference_pb2.CountTokensRequest(model="simulated", prompt=request.prompt, tools=TOOLS)
        assert (await stub.CountTokens(counted, timeout=30)).tokens == final.usage.prompt_tokens
        plain = inference_pb2.GenerateRequest(model="simulated", prompt=inference_pb2.Prompt(text="x"), tools=TOOLS)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [_ async for _ in stub.Generate(plain, timeout=30)]
        assert told(refused.value)["baton-error-field"] == "tools"
