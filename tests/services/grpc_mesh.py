"""A whole mesh in this process over real gRPC: controller, simulated workers, gateway, each on its own server."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clients.peers import GrpcPeers
from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.messages import Worker
from runtime.domain.routing import DECODE, PREFILL, Placement, Router
from runtime.domain.sources import Policy
from runtime.engine.simulated import SimulatedEngine, SimulatedTokenizer, StepProfile, simulated_spec
from runtime.ids import GatewayId, Ids, TenantId, WorkerId
from runtime.kv.transport.grpc import GrpcTransport, message_bytes
from runtime.roles.controller import ControllerRole
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.gateway import GatewayRole, GatewaySettings, ServedModel
from runtime.roles.prefill import PrefillRole
from runtime.roles.stream import StreamSettings
from runtime.services.decode import DecodeService
from runtime.services.inference import InferenceService, InferenceSettings
from runtime.services.mesh import MeshService, RegistryService
from runtime.services.openai.tokenizing import TokenizingPool
from runtime.services.prefill import PrefillService
from runtime.services.server import GrpcServer

SPEC = simulated_spec("simulated", page_tokens=8, max_tokens=4096)
TENANT = TenantId("default")
INSTANT = StepProfile()
LOCAL = "127.0.0.1"
_IDS = Ids(random.Random(7))


@dataclass
class RunningWorker:
    worker: Worker
    role: DecodeRole | PrefillRole
    engine: SimulatedEngine
    transport: GrpcTransport
    _life: AsyncExitStack
    _running: asyncio.Task[None]

    def busy(self) -> bool:
        return bool(self.role.running() or self.engine.core.busy or self.engine._inbox or self.transport.receiving())

    async def kill(self) -> None:
        """Like a death of the process: its connections break and nothing more comes of it."""
        self._running.cancel()
        await self._life.aclose()


@dataclass
class GrpcMesh:
    controller: ControllerRole
    gateway: GatewayRole
    address: str
    controller_address: str
    channels: Channels
    workers: dict[str, RunningWorker] = field(default_factory=dict)

    async def idle(self) -> None:
        """Wait until nothing is left of any request, and look into every pool (invariant 16)."""
        async with asyncio.timeout(10):
            while self.gateway.in_flight() or any(worker.busy() for worker in self.workers.values()):  # noqa: ASYNC110
                await asyncio.sleep(0)  # no one event tells of all of it
        for worker in self.workers.values():
            worker.engine.check()
            pages = worker.engine.core.load().pages
            assert (pages.landing, pages.owned) == (0, 0), worker.worker.id


@asynccontextmanager
async def grpc_mesh(
    *, decode: int = 1, prefill: int = 1, profile: StepProfile = INSTANT, deadline_s: float = 30.0
) -> AsyncIterator[GrpcMesh]:
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(_cancel_all, tasks := [])
        channels = await stack.enter_async_context(Channels())
        controller = ControllerRole(1, 30.0, LoopClock())
        registry = GrpcServer(LOCAL, 0)
        registry.add(RegistryService(controller))
        registry.add(MeshService(controller.view, controller.drain))
        await stack.enter_async_context(registry)
        directory = GrpcDirectory(channels, f"{LOCAL}:{registry.port}", LoopClock())
        workers = {}
        for number in range(prefill + decode):
            role = PREFILL if number < prefill else DECODE
            name = f"{role}-{number if role is PREFILL else number - prefill}"
            workers[name] = await _worker(name, role, profile, channels, group, stack)
            tasks.append(workers[name]._running)
            await directory.register(workers[name].worker)
        gateway = _gateway(directory, channels)
        tasks.append(group.create_task(gateway.run()))
        pool = TokenizingPool(threads=1, waiting=4)
        stack.callback(pool.close)
        server = GrpcServer(LOCAL, 0, message_bytes=32 << 20)
        server.add(InferenceService(gateway, pool, InferenceSettings(TENANT, deadline_s)))
        server.add(MeshService(gateway.view, directory.drain))
        await stack.enter_async_context(server)
        await gateway.wait_ready()
        yield GrpcMesh(controller, gateway, f"{LOCAL}:{server.port}", f"{LOCAL}:{registry.port}", channels, workers)


async def nobody_drains(worker: WorkerId, grace_s: float) -> None:
    raise AssertionError((worker, grace_s))


def told(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The trailing metadata of a failed call."""
    return dict(cast("Iterable[tuple[str, str]]", error.trailing_metadata()))


def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _gateway(directory: GrpcDirectory, channels: Channels) -> GatewayRole:
    return GatewayRole(
        GatewayId("gw-1"),
        (ServedModel(SPEC, SimulatedTokenizer(), 1_700_000_000),),
        Router(Placement.ROUND_ROBIN),
        directory,
        GrpcPeers(channels, GatewayId("gw-1")),
        _IDS,
        LoopClock(),
        GatewaySettings(StreamSettings()),
    )


async def _worker(
    name: str, role: str, profile: StepProfile, channels: Channels, group: asyncio.TaskGroup, stack: AsyncExitStack
) -> RunningWorker:
    life = await stack.enter_async_context(AsyncExitStack())
    clock, boot = LoopClock(), _IDS.boot()
    engine = SimulatedEngine(SPEC, 512, Limits(step_tokens=256, max_running=64), profile, clock)
    server = GrpcServer(LOCAL, 0, message_bytes=message_bytes(SPEC))
    transport = GrpcTransport(SPEC, f"{LOCAL}:{server.port}", channels.bulk)
    tenants = {TENANT: b"secret"}
    running: DecodeRole | PrefillRole
    if role == DECODE:
        settings = DecodeSettings(Policy(remote_min_tokens=64, detached_tokens=1024, transfers=2))
        peers = GrpcPeers(channels, GatewayId(name))
        running = DecodeRole(engine, transport, peers, tenants, boot, _IDS, clock, settings)
        server.add(DecodeService(running))
        server.add(transport.service)
    else:
        running = PrefillRole(engine, transport, tenants)
        server.add(PrefillService(running))
    task = group.create_task(running.run())
    await life.enter_async_context(server)
    worker = Worker(
        WorkerId(name), boot, role, f"{LOCAL}:{server.port}", SPEC.name, SPEC.kv_fingerprint, SPEC.serving_fingerprint,
        SPEC.max_tokens, SPEC.page_tokens, "simulated x1",
    )  # fmt: skip
    return RunningWorker(worker, running, engine, transport, life, task)
