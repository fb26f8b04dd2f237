"""Which way pages go to each peer: the fastest that both ends have, and why. gRPC is what is always left.

The receiver writes into the ticket what it has; the sender tries it, because only a connection proves that two
workers share a host.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from runtime.domain.landing import LandingEvent
from runtime.domain.messages import Offer, Path, Ticket, TicketPage, Traffic
from runtime.domain.steps import Frame
from runtime.errors import ResourceExhausted, Unavailable
from runtime.ids import BootId, TransferId
from runtime.kv.packing import packing
from runtime.kv.transport.grpc import GrpcTransport
from runtime.kv.transport.receiving import KvService
from runtime.kv.transport.shm.receiving import NAME as SHM
from runtime.kv.transport.shm.receiving import ShmReceiver
from runtime.kv.transport.shm.sending import ShmWriters
from runtime.ports import Sender

_PATHS_KEPT = 256
_REASON_CHARACTERS = 512


class Shm:
    """Both ends of shared memory on this worker. Raises `Unavailable` when this system shares none."""

    def __init__(self, grpc: GrpcTransport, staging_bytes: int) -> None:
        endpoint = f"baton-kv-{secrets.token_hex(16)}"
        self.receiver = ShmReceiver(grpc.codec, grpc.transfers, endpoint, staging_bytes)
        self.writers = ShmWriters(grpc.codec)

    def close(self) -> None:
        self.writers.close()
        self.receiver.close()


class Paths:
    """`ports.Transport`. Without `shm` it neither offers nor takes shared memory, for the reason `why_not`."""

    def __init__(self, grpc: GrpcTransport, shm: Shm | None, why_not: str = "") -> None:
        self._grpc = grpc
        self._shm = shm
        self._why_not = why_not
        self._taken: OrderedDict[BootId, Path] = OrderedDict()
        self.name = grpc.name
        self.offers: tuple[Offer, ...] = () if shm is None else (Offer(SHM, shm.receiver.endpoint),)

    @property
    def service(self) -> KvService:
        return self._grpc.service

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[Sender]:
        async with AsyncExitStack() as stack:
            sender: Sender
            name, reason = SHM, "one host: its memory could be mapped"
            try:
                sender = await stack.enter_async_context(self._through_memory(ticket))
            except (ResourceExhausted, Unavailable) as error:
                name, reason = self._grpc.name, error.message
                sender = await stack.enter_async_context(self._grpc.open(ticket))
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
        if self._shm is not None:
            await self._shm.receiver.fence(transfer)

    def receiving(self) -> int:
        """Transfers that may still land, or write."""
        return self._grpc.receiving() + (0 if self._shm is None else self._shm.receiver.writing())

    def traffic(self) -> Traffic:
        """What went where, and what was refused."""
        return Traffic(tuple(self._taken.values()), tuple(sorted(self._grpc.transfers.refused.items())))

    def check(self) -> None:
        """Raise `InvariantViolation` unless the staging slots add up."""
        if self._shm is not None:
            self._shm.receiver.staging.check()

    def _through_memory(self, ticket: Ticket) -> AbstractAsyncContextManager[Sender]:
        offered = next((offer for offer in ticket.offers if offer.transport == SHM), None)
        if self._shm is None:
            raise Unavailable(self._why_not)
        if offered is None:
            raise Unavailable("the receiver offers no shared memory")
        return self._shm.writers.open(ticket, offered.endpoint)

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
