"""Sessions outlive their gateway: what was committed is remembered, and a turn that was under way goes on."""

import asyncio
from pathlib import Path

from batonmesh.v1 import common_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.mesh.local import local_mesh
from tests.services.session_mesh import Seen, config, expected, run, session_mesh, user

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
