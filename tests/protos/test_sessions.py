"""Sessions by the thin client, blocking and not: the same calls, the same answers, streams that outlive a gateway."""

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batonmesh import AsyncClient, AsyncSessions, BatonError, Client, InvalidArgument, NotFound, Sessions, Unavailable
from batonmesh.v1 import inference_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.mesh.listening import free_ports
from runtime.mesh.local import LocalMesh, local_mesh
from tests.services.session_mesh import NEW, config, expected

SAID = {"max_tokens": NEW, "temperature": 0.0}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[LocalMesh]:
    (port,) = free_ports(1)
    async with local_mesh(config(tmp_path, base_ms=2.0), grpc_port=port) as running:
        yield running


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        public = {name: call for name, call in vars(kind).items() if not name.startswith("_")}
        return {name: [*inspect.signature(call).parameters] for name, call in public.items()}

    assert calls(Sessions) == calls(AsyncSessions)


async def test_a_conversation(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.grpc) as client:
        sessions = client.sessions
        made = await sessions.create("simulated", metadata={"who": "tester"}, key="one")
        assert (await sessions.create("simulated", metadata={"who": "tester"}, key="one")).id == made.id
        first = await sessions.complete(made.id, "One.", **SAID)  # type: ignore[arg-type]
        second = await sessions.complete(made.id, [{"role": "user", "content": "Two."}], **SAID)  # type: ignore[arg-type]
        assert [[*first.tokens], [*second.tokens]] == expected("One.", "Two.")
        fork = await sessions.fork(made.id, "other", turn=first.turn.id)
        back = await sessions.rollback(made.id, first.turn.id)
        assert fork.head == back.head == first.turn.id
        again = await sessions.complete(made.id, "Two.", turn={"branch": "other", "key": "k"}, **SAID)  # type: ignore[arg-type]
        same = await sessions.complete(made.id, "Two.", turn={"branch": "other", "key": "k"}, **SAID)  # type: ignore[arg-type]
        assert (again.text, again.turn.id) == (second.text, same.turn.id)
        assert [item.message.content for item in await sessions.items(made.id)] == ["One.", first.text]
        assert [state.id for state in await sessions.newest()] == [made.id]
        cancelled = await sessions.cancel(made.id, first.turn.id)
        assert cancelled.status == pb.TURN_STATUS_COMMITTED
        await sessions.delete(made.id)
        with pytest.raises(NotFound) as gone:
            await sessions.get(made.id)
        assert gone.value.field == "session"


async def test_calls_are_resolved_and_the_conversation_goes_on(mesh: LocalMesh) -> None:
    tools = inference_pb2.Tools(tools=[inference_pb2.Tool(name="weather")])
    said = '<tool_call>{"name": "weather", "arguments": {}}</tool_call> <tool_call'
    async with AsyncClient(mesh.grpc) as client:
        sessions = client.sessions
        made = (await sessions.create("simulated")).id
        answer = await sessions.complete(made, "How is it?", turn={"tools": tools}, choice=[said], max_tokens=100)
        assert answer.text == " <tool_call"
        (pending,) = await sessions.calls(made)
        assert [pending.call] == [*answer.turn.tool_calls]
        (resolved,) = await sessions.resolve(made, {pending.call.id: "Sunny."})
        assert (resolved.state, resolved.result) == (pb.TOOL_CALL_STATE_ANSWERED, "Sunny.")
        with pytest.raises(BatonError) as late:
            await sessions.resolve(made, [pb.ToolResult(call=pending.call.id, deny="No.")])
        assert late.value.field == "results[0].call"
        assert (await sessions.complete(made, [], **SAID)).turn.status == pb.TURN_STATUS_COMMITTED  # type: ignore[arg-type]


async def test_a_session_as_a_file_and_erased(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.grpc) as client:
        sessions = client.sessions
        made = await sessions.create("simulated")
        await sessions.complete(made.id, "One.", **SAID)  # type: ignore[arg-type]
        pieces = [piece async for piece in sessions.export(made.id)]
        await sessions.delete(made.id)
        assert [(await sessions.import_(pieces, key="once")).id for _ in range(2)] == [made.id] * 2
        answer = await sessions.complete(made.id, "Two.", **SAID)  # type: ignore[arg-type]
        assert [*answer.tokens] == expected("One.", "Two.")[1]
        erased = await sessions.erase(made.id)
        assert erased.receipts[0].erased > 0
        with pytest.raises(NotFound):
            await sessions.get(made.id)
        with pytest.raises(InvalidArgument) as refused:
            await sessions.import_([b"".join(pieces)[:-1]])
        assert refused.value.field == "bundle"


async def test_a_stream_goes_on_at_the_next_gateway(mesh: LocalMesh) -> None:
    port = int(mesh.grpc.rpartition(":")[2])
    async with AsyncClient(mesh.grpc) as client:
        session = (await client.sessions.create("simulated")).id
        tokens: list[int] = []
        async for message in client.sessions.run(session, "Tell me.", max_tokens=300, temperature=0.0):
            tokens += message.tokens.ids
            if len(tokens) > 20 and mesh.gateway.port == port and not message.HasField("ended"):
                await mesh.stop_gateway()
                await mesh.start_gateway(port)
                port = -1
        assert tokens == expected("Tell me.", tokens=300)[0]
        assert message.ended.epoch == 2


async def test_calls_that_a_gateway_did_not_live_to_see_whole_come_once_from_the_next(mesh: LocalMesh) -> None:
    """They are read again from what is durable."""
    port = int(mesh.grpc.rpartition(":")[2])
    tools = inference_pb2.Tools(tools=[inference_pb2.Tool(name="weather")])
    calls = [f'<tool_call>{{"name": "weather", "arguments": {{"n": {number}}}}}</tool_call>' for number in range(3)]
    async with AsyncClient(mesh.grpc) as client:
        session = (await client.sessions.create("simulated")).id
        said, tokens = "", 0
        made: list[inference_pb2.ToolCall] = []
        stream = client.sessions.run(
            session, "Hello.", turn={"tools": tools}, choice=["So: " + " and ".join(calls)], max_tokens=400
        )
        async for message in stream:
            said += message.tokens.text
            tokens += len(message.tokens.ids)
            made += message.tokens.tool_calls
            if tokens > 90 and mesh.gateway.port == port and not message.HasField("ended"):
                assert len(made) == 1, "within the second call"
                await mesh.stop_gateway()
                await mesh.start_gateway(port)
                port = -1
        assert message.ended.epoch == 2
        assert [call.arguments for call in made] == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
        assert made == [*message.ended.tool_calls] == [pending.call for pending in await client.sessions.calls(session)]
        assert said == "So: and and"


def test_who_is_not_there_is_not_waited_for_beyond_patience() -> None:
    (port,) = free_ports(1)
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(Unavailable):
        next(client.sessions.run("sess-1", "Hello.", patience=0.5))


async def test_what_cannot_be_sent_is_refused_by_name() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument) as refused:
            client.sessions.run("sess-1", [{"role": "user", "text": "Hello."}])
        assert refused.value.field == "items"
        with pytest.raises(InvalidArgument) as refused:
            client.sessions.run("sess-1", "Hello.", turn={"on_conflict": "shout"})  # type: ignore[arg-type]
        assert refused.value.field == "on_conflict"
