"""Requests that are given up in every state leave nothing behind: invariant 16, with zeros, on every worker."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import inference_pb2_grpc
from runtime.config import Config
from runtime.domain import request as r
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.roles.decode import DecodeRole
from tests.e2e.asking import request
from tests.scale import scaled

TOTAL = 1000
AT_LEAST = scaled(5, 50)
AT_ONCE = 24
WANTED = {"reserving", "waiting_room", "landing", "running", "finished", "detached"}


def config_of(state: Path) -> Config:
    """Steps of some milliseconds and few pages, so that requests spend time in every state."""
    return Config.model_validate(
        {
            "mesh": {"state": state},
            "model": {"simulated": {"max_tokens": 2048, "base_ms": 3.0, "token_ms": 0.05}},
            "engine": {"pages": 48, "page_tokens": 8, "step_tokens": 64, "max_running": 8},
            "handoff": {"remote_min_tokens": 16},
            "timing": {"grace_s": 0.5},
        }
    )


class Tally:
    """In which state of its request each cancel, or loss of its gateway, found it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.cancelled: Counter[str] = Counter()
        original = r.Request.on

        def on(request: r.Request, event: r.RequestEvent) -> list[r.RequestCommand]:
            if isinstance(event, r.CancelAsked):
                self.cancelled["detached" if request.detached else request.state.value] += 1
            elif isinstance(event, r.GatewayLost) and request.state is r.RequestState.RUNNING:
                self.cancelled["detached"] += 1
            return original(request, event)

        patch.setattr(r.Request, "on", on)

    def enough(self) -> bool:
        return all(self.cancelled[state] >= AT_LEAST for state in WANTED)


async def give_up(channel: grpc.aio.Channel, source: random.Random) -> None:
    """One request that its client leaves after a random time, or after a random token, sometimes the last."""
    prompt = [source.randrange(97, 123) for _ in range(source.choice((4, 40, 160, 160)))]
    new = source.choice((1, 4, 40))
    wanted = request("simulated", prompt, max_tokens=new, temperature=1.0, seed=source.randrange(1 << 30))
    stub = inference_pb2_grpc.InferenceStub(channel)
    call = stub.Generate(wanted, timeout=30)
    if source.random() < 0.7:
        with suppress(TimeoutError):
            async with asyncio.timeout(source.uniform(0, 0.3)):
                await call.read()
    else:
        left = source.randrange(new + 1)
        async for response in call:
            left -= len(response.events)
            if left <= 0:
                break
    call.cancel()


async def cut_streams(mesh: LocalMesh, source: random.Random) -> None:
    """Break the streams between the gateway and the decode workers, again and again."""
    while True:
        await asyncio.sleep(source.uniform(0.5, 1.0))
        for stream in list(mesh.gateway.role._streams.values()):
            stream.close()


def left_over(mesh: LocalMesh) -> dict[str, object]:
    """What workers that should be idle still hold."""
    held: dict[str, object] = {}
    for name, running in mesh.workers.items():
        load, role = running.engine.load(), running.role
        counts = (role.running(), load.running, load.waiting, load.awaiting, load.pages.landing, load.pages.owned)
        if any(counts) or running.transport.receiving():
            held[name] = (*counts, running.transport.receiving())
    return held


@pytest.mark.timeout(600)
async def test_cancels_in_every_state_free_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(monkeypatch)
    source = random.Random(11)
    async with local_mesh(config_of(tmp_path)) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        cutting = asyncio.get_running_loop().create_task(cut_streams(mesh, source))
        done = 0
        while done < scaled(240, TOTAL) or (not tally.enough() and done < 5 * TOTAL):
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(give_up(channel, source))
            done += AT_ONCE
        cutting.cancel()
        async with asyncio.timeout(20):
            while left_over(mesh):  # noqa: ASYNC110 - what it waits for is in several workers
                await asyncio.sleep(0.05)
        mesh.check()
        assert all(isinstance(mesh.workers[name].role, DecodeRole) for name in mesh.workers if "decode" in name)
    assert tally.enough(), tally.cancelled
