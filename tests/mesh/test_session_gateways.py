"""Two gateways on one PostgreSQL: either shows the other's turns, and goes on with them when it is silent."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from batonmesh.v1 import common_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.config import SessionsConfig
from runtime.mesh.gateway import gateway_process
from runtime.mesh.listening import free_ports
from runtime.mesh.local import local_mesh
from tests.mesh.gateways import gateway
from tests.mesh.judging import judge
from tests.services.session_mesh import Seen, config, expected, run, user

LONG = common_pb2.Sampling(max_tokens=400, temperature=0)


async def some(seen: Seen, tokens: int) -> None:
    async with asyncio.timeout(30):
        while len(seen.tokens) < tokens:  # noqa: ASYNC110 - what comes is a stream's matter
            await asyncio.sleep(0.01)


async def test_a_gateway_shows_the_turns_of_another_and_lets_its_own_wait_for_them(server: str, tmp_path: Path) -> None:
    settings = config(tmp_path, base_ms=1.0).model_copy(update={"sessions": SessionsConfig(store=server, lease_s=1.0)})
    async with (
        local_mesh(settings) as mesh,
        gateway_process(settings, mesh.controller.address, port=0) as second,
        user(mesh.grpc) as here,
        user(f"127.0.0.1:{second.port}") as there,
    ):
        await second.role.wait_ready()
        session = await here.create()
        seen = Seen()
        reading = asyncio.get_running_loop().create_task(here.run(session, "Tell me.", seen, sampling=LONG))
        await some(seen, 10)
        assert seen.opened is not None
        after, shown = await asyncio.gather(
            there.run(session, "And more.", on_conflict=pb.ON_CONFLICT_ENQUEUE),
            there.resume(session, seen.opened.id),
        )
        await reading
        assert (shown.tokens, shown.text, shown.seq) == (seen.tokens, seen.text, seen.seq)
        assert shown.end.epoch == 1, "nobody took it over"
        assert after.end.epoch == 2
        assert (await here.branch(session)).head == after.end.id
        # What runs there is stopped from here.
        seen = Seen()
        reading = asyncio.get_running_loop().create_task(there.run(session, "Go on.", seen, sampling=LONG))
        await some(seen, 10)
        assert seen.opened is not None
        await here.stub.CancelTurn(pb.CancelTurnRequest(session=session, turn=seen.opened.id))
        await reading
        assert seen.end.status == pb.TURN_STATUS_CANCELLED
    assert await judge(settings) == 3


@pytest.mark.timeout(120)
async def test_an_owner_that_was_frozen_is_fenced(server: str, tmp_path: Path) -> None:
    """Invariant 1: stopped beyond its lease, it wakes with a turn that is another's, and changes nothing of it."""
    sessions = SessionsConfig(store=server, lease_s=1.0)
    settings = config(tmp_path, base_ms=5.0).model_copy(update={"sessions": sessions})
    (port,) = free_ports(1)
    async with local_mesh(settings) as mesh:
        with gateway(mesh, port, "") as frozen:
            async with user(f"127.0.0.1:{port}") as before, user(mesh.grpc) as after:
                session = await after.create()
                seen = Seen()
                call = before.stub.RunTurn(run(session, "Tell me.", sampling=LONG), wait_for_ready=True)
                async for message in call:
                    seen.take(message)
                    if len(seen.tokens) > 10:
                        break
                os.kill(frozen.pid, signal.SIGSTOP)
                assert seen.opened is not None
                other = Seen()
                reading = asyncio.get_running_loop().create_task(after.resume(session, seen.opened.id, other))
                await some(other, 200)
                os.kill(frozen.pid, signal.SIGCONT)
                async for message in call:
                    seen.take(message)
                await reading
                assert seen.tokens == other.tokens == expected("Tell me.", tokens=400)[0]
                assert (seen.end.epoch, other.end.epoch) == (2, 2)
                assert (await after.branch(session)).turns == 1
    assert await judge(settings) == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("skew_s", [300.0, -300.0])
async def test_a_clock_that_is_wrong_by_five_minutes_changes_nothing(
    server: str, tmp_path: Path, skew_s: float
) -> None:
    """Invariant 15: neither of two gateways takes the turns of the other for left, for several leases."""
    sessions = SessionsConfig(store=server, lease_s=1.0)
    settings = config(tmp_path, base_ms=8.0).model_copy(update={"sessions": sessions})
    (port,) = free_ports(1)
    async with local_mesh(settings) as mesh:
        with gateway(mesh, port, skew_s=skew_s):
            async with user(f"127.0.0.1:{port}") as wrong, user(mesh.grpc) as right:
                ours = [await right.create() for _ in range(2)]
                call = wrong.stub.RunTurn(run(ours[0], "Tell me.", sampling=LONG), wait_for_ready=True)
                first = await call.read()
                assert isinstance(first, pb.TurnMessage)
                there, here = Seen(), Seen()
                there.take(first)
                began = time.monotonic()
                reading = asyncio.get_running_loop().create_task(right.run(ours[1], "Tell me.", here, sampling=LONG))
                while isinstance(message := await call.read(), pb.TurnMessage):
                    there.take(message)
                await reading
                assert time.monotonic() - began > 3.0
        assert there.tokens == here.tokens == expected("Tell me.", tokens=400)[0]
        assert (there.end.epoch, here.end.epoch) == (1, 1), "nobody took it over"
    assert await judge(settings) == 2
