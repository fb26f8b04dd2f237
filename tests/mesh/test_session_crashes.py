"""A gateway killed at every step of a turn: the client's stream is that of an unharmed run, and the turn is one."""

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batonmesh import Client, Unavailable
from batonmesh.v1 import limits_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.config import SessionsConfig
from runtime.mesh.listening import free_ports
from runtime.mesh.local import LocalMesh, local_mesh
from tests.mesh.gateways import gateway
from tests.mesh.judging import judge
from tests.scale import scaled
from tests.services.session_mesh import config, expected

POINTS = (
    "after append 3",
    "within finish 1",
    "after open 1",
    "after finish 1",
    "before append 1",
    "within open 1",
    "before open 1",
    "before append 3",
    "after append 1",
    "before finish 1",
)
TOKENS = 40


def converse(client: Client, session: str, text: str) -> tuple[list[int], pb.Turn]:
    """The tokens of a turn, whose messages are checked to come in order, whoever sends them."""
    tokens: list[int] = []
    stream = client.sessions.run(session, text, patience=60, max_tokens=TOKENS, temperature=0)
    for seq, message in enumerate(stream):
        assert message.seq == seq
        assert not message.HasField("tokens") or message.tokens.index == len(tokens)
        tokens += message.tokens.ids
    return tokens, message.ended


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kept", ["sqlite", "postgres"])
async def test_a_gateway_killed_at_any_step_costs_no_token_and_repeats_no_turn(
    tmp_path: Path, kept: str, request: pytest.FixtureRequest
) -> None:
    """Invariants 1 to 8, as the simulation judges them, and 12. Each gateway dies at its own point and the next one
    goes on, until one does not die."""
    few = POINTS[:2] if kept == "sqlite" else POINTS[2:4]
    points = POINTS[: scaled(0, len(POINTS))] or few
    store = kept if kept == "sqlite" else request.getfixturevalue("server")
    settings = config(tmp_path).model_copy(update={"sessions": SessionsConfig(store=store, lease_s=1.0)})
    (port,) = free_ports(1)
    async with local_mesh(settings) as mesh:
        await mesh.stop_gateway()
        try:
            with Client(f"127.0.0.1:{port}") as client:
                await asyncio.to_thread(_talk, mesh, port, points, client)
        finally:
            await mesh.start_gateway()
    assert await judge(settings) == len(points)


def _talk(mesh: LocalMesh, port: int, points: tuple[str, ...], client: Client) -> None:
    with gateway(mesh, port, ""):
        session = _created(client)
    told = [f"Point {number}." for number in range(len(points))]
    for place, (text, point) in enumerate(zip(told, points, strict=True)):
        with ThreadPoolExecutor(1) as user:
            with gateway(mesh, port, point) as dying:
                answer = user.submit(converse, client, session, text)
                assert dying.wait(60) == -signal.SIGKILL, point
            with gateway(mesh, port, ""):
                tokens, ended = answer.result(60)
                state = client.sessions.get(session)
                (branch,) = state.branches
        assert tokens == expected(*told[: place + 1], tokens=TOKENS)[-1], point
        assert ended.status == pb.TURN_STATUS_COMMITTED, point
        assert (branch.turns, branch.head) == (place + 1, ended.id), point
        # What the dead one held came back, and what was replayed was spent once.
        assert state.reserved == limits_pb2.Spending(), point
        assert (state.used.turns, state.used.completion_tokens) == (place + 1, TOKENS * (place + 1)), point


def _created(client: Client) -> str:
    """Once the gateway listens."""
    while True:
        try:
            return client.sessions.create("simulated", key="created").id
        except Unavailable:
            time.sleep(0.1)
