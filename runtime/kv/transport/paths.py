"""Which way pages go to each peer: the fastest that both ends have, and why. gRPC is what is always left.

The receiver writes into the ticket what it has; the sender tries it, because only a connection proves that two
workers share a host, or have a network in common that both can write over.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runtime.domain.landing import LandingEvent
from runtime.domain.messages import Offer, Path, Ticket, TicketPage, Traffic
from runtime.domain.steps import Frame
from runtime.errors import ResourceExhausted, Unavailable
from runtime.ids import BootId, TransferId
from runtime.kv.packing import packing
from runtime.kv.transport.grpc import GrpcTransport
from runtime.kv.transport.nixl.ends import Nixl
from runtime.kv.transport.shm.receiving import NAME as SHM
from runtime.kv.transport.shm.receiving import ShmReceiver
from runtime.kv.transport.shm.sending import ShmWriters
from runtime.ports import Sender

if TYPE_CHECKING:
    from runtime.kv.transport.nixl.service import NixlService
    from runtime.kv.transport.receiving import KvService

_PATHS_KEPT = 256
_REASON_CHARACTERS = 512


class Way(Protocol):
    """A faster path than gRPC, both ends of it. `reason` says why it is taken, `missing` why not when the ticket does
    not offer it."""

    name: str
    reason: str
    missing: str
    offer: Offer

    def open(self, ticket: Ticket, endpoint: str) -> AbstractAsyncContextManager[Sender]:
        """Entering raises `Unavailable` or `ResourceExhausted` saying why, when another path has to do."""

    async def fence(self, transfer: TransferId) -> None:
        """As `ports.Transport` has it."""

    def writing(self) -> int:
        """Transfers whose writes may still arrive."""

    def check(self) -> None:
        """Raise `InvariantViolation` unless its memory adds up."""


class Shm:
    """Both ends of shared memory on this worker. Raises `Unavailable` when this system shares none."""

    name = SHM
    reason = "one host: its memory could be mapped"
    missing = "the receiver offers no shared memory"

    def __init__(self, grpc: GrpcTransport, staging_bytes: int) -> None:
        endpoint = f"baton-kv-{secrets.token_hex(16)}"
        self.receiver = ShmReceiver(grpc.codec, grpc.transfers, endpoint, staging_bytes)
        self.writers = ShmWriters(grpc.codec)
        self.offer = Offer(SHM, endpoint)

    def open(self, ticket: Ticket, endpoint: str) -> AbstractAsyncContextManager[Sender]:
        return self.writers.open(ticket, endpoint)

    async def fence(self, transfer: TransferId) -> None:
        await self.receiver.fence(transfer)

    def writing(self) -> int:
        return self.receiver.writing()

    def check(self) -> None:
        self.receiver.staging.check()

    def close(self) -> None:
        self.writers.close()
        self.receiver.close()


class Paths:
    """`ports.Transport`. `shm` and `nixl` are taken and offered where they are there; `why_not` says why one is not."""

    def __init__(self, grpc: GrpcTransport, shm: Shm | None, why_not: str = "", nixl: Nixl | None = None) -> None:
        self._grpc = grpc
        self._ways: tuple[Way, ...] = tuple(way for way in (shm, nixl) if way is not None)
        self._why_not = why_not
        self._taken: OrderedDict[BootId, Path] = OrderedDict()
        self.name = grpc.name
        self.offers: tuple[Offer, ...] = tuple(way.offer for way in self._ways)
        self.nixl = nixl
        self.services: tuple[KvService | NixlService, ...] = (
            (grpc.service,) if nixl is None else (grpc.service, nixl.service)
        )

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[Sender]:
        async with AsyncExitStack() as stack:
            sender, name, reason = await self._opened(ticket, stack)
            counting = _Counting(sender, packing(self._grpc.codec.spec, ticket))
            try:
                yield counting
            finally:
                self._note(ticket.boot, name, reason, counting)

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        return self._grpc.expect(transfer, epoch, pages, sink)

    async def fence(self, transfer: TransferId) -> None:
        await self._grpc.fence(transfer)
        for way in self._ways:
            await way.fence(transfer)

    def receiving(self) -> int:
        """Transfers that may still land, or write."""
        return self._grpc.receiving() + sum(way.writing() for way in self._ways)

    def traffic(self) -> Traffic:
        """What went where, and what was refused."""
        return Traffic(tuple(self._taken.values()), tuple(sorted(self._grpc.transfers.refused.items())))

    def check(self) -> None:
        """Raise `InvariantViolation` unless the staging slots add up."""
        for way in self._ways:
            way.check()

    async def _opened(self, ticket: Ticket, stack: AsyncExitStack) -> tuple[Sender, str, str]:
        """By the first way that both have, its name, and the reason for it."""
        endpoints = {offer.transport: offer.endpoint for offer in ticket.offers}
        reasons = [self._why_not] if self._why_not else []
        for way in self._ways:
            if way.name not in endpoints:
                reasons.append(way.missing)
                continue
            try:
                sender = await stack.enter_async_context(way.open(ticket, endpoints[way.name]))
            except (ResourceExhausted, Unavailable) as error:
                reasons.append(error.message)
            else:
                return sender, way.name, way.reason
        return await stack.enter_async_context(self._grpc.open(ticket)), self._grpc.name, "; ".join(reasons)

    def _note(self, boot: BootId, transport: str, reason: str, sent: "_Counting") -> None:
        before = self._taken.pop(boot, None) or Path(boot, transport, reason, 0, 0)
        self._taken[boot] = Path(
            boot,
            transport,
            reason[:_REASON_CHARACTERS],
            before.transfers + 1,
            before.bytes + sent.bytes,
            before.busy_ms + sent.busy_s * 1000,
        )
        if len(self._taken) > _PATHS_KEPT:
            self._taken.popitem(last=False)


@dataclass(slots=True)
class _Counting:
    """A sender of what the ticket asks for, the bytes of payload that went through it, and how long it was waited
    for."""

    sender: Sender
    pack: Callable[[Frame], Iterable[Frame]]
    bytes: int = 0
    busy_s: float = 0.0

    async def send(self, frame: Frame) -> None:
        began = time.perf_counter()
        for packed in self.pack(frame):
            await self.sender.send(packed)
            self.bytes += len(packed.payload)
        self.busy_s += time.perf_counter() - began

    async def commit(self) -> None:
        began = time.perf_counter()
        await self.sender.commit()
        self.busy_s += time.perf_counter() - began

    async def abort(self) -> None:
        await self.sender.abort()
