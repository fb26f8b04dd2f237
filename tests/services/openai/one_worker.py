"""A gateway and one decode worker with the simulated engine, in this process: the real roles over queues for wires."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.landing import LandingEvent
from runtime.domain.messages import GatewayCommand, Offer, StepBatch, Ticket, TicketPage, View, Worker
from runtime.domain.routing import DECODE, Placement, Router
from runtime.domain.sequence import Ref
from runtime.domain.sources import Policy
from runtime.engine.simulated import SimulatedEngine, SimulatedTokenizer, StepProfile, simulated_spec
from runtime.ids import BootId, GatewayId, Ids, TenantId, TransferId, WorkerId
from runtime.ports import DecodeStream, PrefillPeer, Sender
from runtime.roles.decode import DecodeRole, DecodeSettings, Link
from runtime.roles.gateway import GatewayRole, GatewaySettings, ServedModel
from runtime.roles.stream import StreamSettings

MODEL = "simulated"
CREATED = 1_700_000_000
SPEC = simulated_spec(MODEL, page_tokens=8, max_tokens=512)
INSTANT = StepProfile()
TENANT = TenantId("default")


class NoTransport:
    """There is no prefill worker, so nothing may ever be moved."""

    name = "none"
    offers: tuple[Offer, ...] = ()

    def open(self, ticket: Ticket) -> AbstractAsyncContextManager[Sender]:
        raise AssertionError(ticket)

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        raise AssertionError(transfer)

    async def fence(self, transfer: TransferId) -> None:
        raise AssertionError(transfer)


class QueueStream:
    def __init__(self, role: DecodeRole, link: Link) -> None:
        self._role = role
        self._link = link

    async def send(self, *commands: GatewayCommand) -> None:
        for command in commands:
            self._role.command(self._link, command)

    def batches(self) -> AsyncIterator[StepBatch]:
        return self._link.batches()


class OneWorker:
    """Directory, peers and the worker itself."""

    def __init__(self, profile: StepProfile) -> None:
        clock = LoopClock()
        self.ids = Ids(random.Random(1))
        self.engine = SimulatedEngine(SPEC, 256, Limits(step_tokens=64, max_running=8), profile, clock)
        settings = DecodeSettings(Policy(remote_min_tokens=1, detached_tokens=64, transfers=1))
        self.boot = self.ids.boot()
        self.role = DecodeRole(
            self.engine, NoTransport(), self, {TENANT: b"secret"}, self.boot, self.ids, clock, settings, self._observe
        )
        self._events: asyncio.Queue[None] = asyncio.Queue()
        self._views: asyncio.Queue[View] = asyncio.Queue()

    def serve(self, version: int, roles: tuple[str, ...] = (DECODE,)) -> None:
        """Show a view with workers of these roles; all of them are this one."""
        workers = tuple(
            Worker(
                WorkerId(role),
                self.boot,
                role,
                "here",
                MODEL,
                SPEC.kv_fingerprint,
                SPEC.serving_fingerprint,
                SPEC.max_tokens,
                SPEC.page_tokens,
                "simulated",
            )
            for role in roles
        )
        self._views.put_nowait(View(1, version, workers))

    async def idle(self) -> None:
        """Wait until no request runs."""
        while self.role.running():
            await self._events.get()

    def _observe(self, ref: Ref, event: object, commands: Sequence[object]) -> None:
        self._events.put_nowait(None)

    async def shown(self) -> None:
        """Wait until the gateway took every view."""
        await self._views.join()

    async def register(self, worker: Worker) -> None:
        raise AssertionError(worker)

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        raise AssertionError(worker)

    async def views(self) -> AsyncIterator[View]:
        while True:
            yield await self._views.get()
            self._views.task_done()

    def prefill(self, address: str) -> PrefillPeer:
        raise AssertionError(address)

    def decode(self, address: str) -> "OneWorker":
        assert address == "here"
        return self

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[DecodeStream]:
        async with self.role.attach(GatewayId("gateway")) as link:
            yield QueueStream(self.role, link)


@dataclass(frozen=True)
class Mesh:
    gateway: GatewayRole
    worker: OneWorker


@asynccontextmanager
async def one_worker(profile: StepProfile = INSTANT) -> AsyncIterator[Mesh]:
    worker = OneWorker(profile)
    model = ServedModel(SPEC, SimulatedTokenizer(), CREATED)
    gateway = GatewayRole(
        GatewayId("gateway"),
        (model,),
        Router(Placement.ROUND_ROBIN),
        worker,
        worker,
        worker.ids,
        LoopClock(),
        GatewaySettings(StreamSettings()),
    )
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(worker.role.run()), group.create_task(gateway.run())]
        worker.serve(version=1)
        await gateway.wait_ready()
        yield Mesh(gateway, worker)
        for task in running:
            task.cancel()
