"""Both ends of NIXL on a worker: the agent with its thread, the memory that it writes from and into, the service."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from batonmesh.v1 import nixl_pb2 as pb
from runtime.domain.messages import Offer, Ticket
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.nixl.library import library
from runtime.kv.transport.nixl.memory import Memory
from runtime.kv.transport.nixl.receiving import HOLD_S, NAME, NixlReceiver
from runtime.kv.transport.nixl.sending import NixlWriters
from runtime.kv.transport.nixl.service import NixlService
from runtime.kv.transport.nixl.thread import AgentThread
from runtime.ports import Sender
from runtime.scope import Scope


@dataclass(frozen=True, slots=True)
class NixlPlan:
    """`agent` is `worker:generation`. `staging_bytes` of memory to write from, and as many to be written into.
    `hold_s`: how long what a dead process had sent may still be on its way."""

    agent: str
    backend: str
    staging_bytes: int
    hold_s: float = HOLD_S


class Nixl:
    """A way of `Paths`."""

    name = NAME
    missing = "the receiver offers no NIXL"

    def __init__(self, receiver: NixlReceiver, writers: NixlWriters, plan: NixlPlan) -> None:
        self.receiver = receiver
        self.writers = writers
        self.service = NixlService(receiver, writers)
        self.reason = f"both have NIXL with {plan.backend}"
        self.offer = Offer(NAME, plan.agent)

    def open(self, ticket: Ticket, endpoint: str) -> AbstractAsyncContextManager[Sender]:
        return self.writers.open(ticket, endpoint)

    async def fence(self, transfer: TransferId) -> None:
        await self.receiver.fence(transfer)

    def writing(self) -> int:
        """Transfers whose writes may still arrive, or leave."""
        return self.receiver.writing() + self.writers.posted()

    def check(self) -> None:
        """Raise `InvariantViolation` unless the staging slots add up."""
        self.receiver.staging.check()


class _Errands:
    """Tasks that nobody waits for and that end with the transport."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """At the end nothing more is started: a call that is cut off then may still ask for it."""
        if self._over:
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        self._over = True
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def running_nixl(
    codec: FrameCodec,
    transfers: OpenTransfers,
    address: str,
    channel: Callable[[str], grpc.aio.Channel],
    back: Callable[[str], grpc.aio.Channel],
    plan: NixlPlan,
) -> AsyncIterator[Nixl]:
    """`address` is where others reach its service; `channel` gives the channel to a receiver, `back` to a sender.

    Raises `Unavailable` when there is no NIXL here, or its backend does not start. Memory that a writer may still
    write into is left as it is until the process ends.
    """
    slots = max(plan.staging_bytes // codec.max_bytes, 2)
    thread = AgentThread(library(), plan.agent, plan.backend)
    source, target = (Memory(slots, codec.max_bytes) for _ in range(2))
    try:
        await thread.start()
        await thread.register(source.region)
        thread.write_from(source.region, source.slot_bytes)
        met = pb.MeetResponse(
            agent=plan.agent,
            metadata=await thread.metadata(await thread.register(target.region)),
            address=target.region.address,
            slots=target.slots,
            slot_bytes=target.slot_bytes,
            memory=target.region.memory,
            device=target.region.device,
        )
        async with Scope() as group:
            errands = _Errands(group)
            receiver = NixlReceiver(codec, transfers, target, thread, met, back, errands.start, plan.hold_s)
            writers = NixlWriters(codec, thread, source, address, channel, errands.start)
            nixl = Nixl(receiver, writers, plan)
            try:
                yield nixl
            finally:
                errands.cancel()
    finally:
        await thread.stop()
    if not nixl.writing():
        source.close()
        target.close()
