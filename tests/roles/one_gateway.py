"""One gateway, its directory and its decode workers in the hands of a test."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from runtime.clock import LoopClock
from runtime.domain import messages as m
from runtime.domain.generation import Generation
from runtime.domain.messages import Output, Start, View
from runtime.domain.routing import DECODE, Placement, Router
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.domain.spec import ModelSpec
from runtime.engine.simulated import SimulatedTokenizer, simulated_spec
from runtime.errors import BatonError
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.ports import PrefillPeer
from runtime.roles.deltas import Deltas
from runtime.roles.gateway import GatewayRole, GatewaySettings, ServedModel
from runtime.roles.stream import StreamSettings
from tests.roles.virtual import settle
from tests.roles.wires import Worker

SPEC = simulated_spec("model", page_tokens=4, max_tokens=40)
ASK = Generation("model", (1, 2, 3), Sampling(max_tokens=9), TenantId("tenant"), deadline_s=60.0)
SETTINGS = GatewaySettings(
    StreamSettings(attach_s=1.0, silence_s=1e6), placement_s=10.0, second_chance_s=0.5, overdue_s=20.0, deltas=4
)


def member(name: str, role: str = DECODE, boot: str | None = None, spec: ModelSpec = SPEC) -> m.Worker:
    served = spec.kv_fingerprint, spec.serving_fingerprint, spec.max_tokens, spec.page_tokens
    return m.Worker(WorkerId(name), BootId(boot or f"boot-{name}"), role, name, "model", *served, "cpu x1")


class _Mesh:
    """The directory and the peers of a gateway."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {name: Worker() for name in "abc"}
        self._views: asyncio.Queue[View] = asyncio.Queue()
        self._version = 0

    def show(self, *workers: m.Worker) -> None:
        self._version += 1
        self._views.put_nowait(View(1, self._version, workers))

    async def views(self) -> AsyncIterator[View]:
        while True:
            yield await self._views.get()

    async def register(self, worker: m.Worker) -> None:
        raise AssertionError(worker)

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        raise AssertionError(worker)

    def decode(self, address: str) -> Worker:
        return self.workers[address]

    def prefill(self, address: str) -> PrefillPeer:
        raise AssertionError(address)


@dataclass
class Held:
    role: GatewayRole
    mesh: _Mesh
    group: asyncio.TaskGroup
    serving: "asyncio.Task[None]"

    async def show(self, *workers: m.Worker) -> None:
        self.mesh.show(*workers)
        await settle()

    def last(self, worker: str) -> m.GatewayCommand:
        return self.mesh.workers[worker].commands[-1]

    def starts(self, worker: str) -> list[Start]:
        return [command for command in self.mesh.workers[worker].commands if isinstance(command, Start)]


@asynccontextmanager
async def gateway(
    *workers: m.Worker, settings: GatewaySettings = SETTINGS, spec: ModelSpec = SPEC
) -> AsyncIterator[Held]:
    mesh = _Mesh()
    role = GatewayRole(
        GatewayId("gateway"), (ServedModel(spec, SimulatedTokenizer(), 0),), Router(Placement.ROUND_ROBIN), mesh, mesh,
        Ids(random.Random(1)), LoopClock(), settings,
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        held = Held(role, mesh, group, group.create_task(role.run()))
        await settle()
        await held.show(*workers)
        yield held
        held.serving.cancel()


@asynccontextmanager
async def opened(held: Held, ask: Generation = ASK) -> AsyncIterator[Deltas]:
    async with held.role.open(ask) as deltas:
        await settle()
        yield deltas


def out(ref: Ref, index: int, count: int = 1, finish: FinishReason | None = None) -> Output:
    return Output(ref, index, tuple(Sampled(60 + index + n) for n in range(count)), "text", finish)


async def failure(deltas: Deltas) -> BatonError:
    with pytest.raises(BatonError) as failed:
        async for _ in deltas:
            pass
    return failed.value
