"""Sessions outlive their gateway: what was committed is remembered, and a turn that was under way goes on."""

import asyncio
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from runtime.mesh.local import local_mesh
from tests.services.grpc_mesh import told
from tests.services.session_mesh import NEW, Seen, config, expected, run, session_mesh, user

LONG = common_pb2.Sampling(max_tokens=300, temperature=0)


async def test_a_conversation_goes_on_after_the_whole_mesh_was_started_again(tmp_path: Path) -> None:
    async with session_mesh(tmp_path) as (_, before):
        session = await before.create()
        first = await before.run(session, "My dog is called Rex.")
    async with session_mesh(tmp_path) as (_, after):
        second = await after.run(session, "What is my dog called?")
        assert [first.tokens, second.tokens] == expected("My dog is called Rex.", "What is my dog called?")
        again = await after.resume(session, first.end.id)
        assert (again.tokens, again.text) == (first.tokens, first.text)


async def test_a_turn_goes_on_at_the_next_gateway_with_and_without_a_client(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path, base_ms=2.0)) as mesh:
        seen = Seen()
        async with user(mesh.grpc) as before:
            sessions = [await before.create() for _ in range(2)]
            reading = asyncio.get_running_loop().create_task(before.run(sessions[0], "Tell me.", seen, sampling=LONG))
            call = before.stub.RunTurn(run(sessions[1], "Tell me.", sampling=LONG))
            left = await call.read()
            assert isinstance(left, pb.TurnMessage)
            call.cancel()
            async with asyncio.timeout(20):
                while len(seen.tokens) < 20:  # noqa: ASYNC110 - what comes is a stream's matter
                    await asyncio.sleep(0.01)
            await mesh.stop_gateway()
            await asyncio.wait((reading,))
        assert seen.opened is not None
        assert len(seen.tokens) < 300
        await mesh.start_gateway()
        async with user(mesh.grpc) as after:
            await after.resume(sessions[0], seen.opened.id, seen)
            assert seen.tokens == expected("Tell me.", tokens=300)[0]
            assert (seen.end.status, seen.end.epoch) == (pb.TURN_STATUS_COMMITTED, 2)
            alone = await after.resume(sessions[1], left.opened.id)
            assert alone.tokens == expected("Tell me.", tokens=300)[0]
            assert (await after.branch(sessions[1])).turns == 1


async def test_a_session_whose_tokens_mean_something_else_now_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with session_mesh(tmp_path) as (_, before):
        session = await before.create()
        await before.run(session)
    monkeypatch.setattr(SimulatedTokenizer, "vocabulary", "another")
    async with session_mesh(tmp_path) as (_, after):
        with pytest.raises(grpc.aio.AioRpcError, match="another tokenizer") as refused:
            await after.run(session)
        assert told(refused.value)["baton-error-field"] == "session"
        assert len(await after.said(session)) == 2


async def test_a_model_that_cannot_render_what_is_new_alone_is_refused_unless_asked_to_render_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedTokenizer, "no_deltas", lambda self: "it counts its turns")
    async with session_mesh(tmp_path) as (_, somebody):
        with pytest.raises(grpc.aio.AioRpcError, match="it counts its turns") as refused:
            await somebody.create()
        assert told(refused.value)["baton-error-field"] == "rerender"
        asked = pb.CreateSessionRequest(model="simulated", rerender=True)
        session = (await somebody.stub.CreateSession(asked)).id
        first = await somebody.run(session, "One.")
        second = await somebody.run(session, "Two.")
        said = await somebody.said(session)
    roles = ("user", "assistant", "user")
    whole = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    prompt = SimulatedTokenizer().render_chat([{**message} for message in whole])
    assert second.tokens == continuation(prompt, Sampling(NEW, temperature=0))
    assert (first.end.drift_tokens, second.end.drift_tokens) == (0, NEW), "a space more, before the answer"
    assert second.end.usage.prompt_tokens == len(prompt)
