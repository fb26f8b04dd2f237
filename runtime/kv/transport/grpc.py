"""Pages by gRPC: the path that exists between any two workers. Both ends of it, on one worker."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import grpc

from runtime.domain.landing import LandingEvent
from runtime.domain.messages import Offer, Ticket, TicketPage
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding
from runtime.errors import BatonError
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.receiving import NAME, KvService
from runtime.kv.transport.sending import MESSAGE_BYTES, GrpcSender
from runtime.scope import Scope

_SMALL_MESSAGES_BYTES = 8 << 20
_LANES = 2


def message_bytes(spec: ModelSpec) -> int:
    """What a server must be ready to receive in one message, if pages of this model are to land on it."""
    return max(_SMALL_MESSAGES_BYTES, FrameCodec(spec).max_bytes + 1024)


class GrpcTransport:
    """`endpoint` is host:port where others reach `service`; `channel` gives the channels to such an endpoint of a
    worker of some role, numbered from 0, each with a connection of its own. Pages are taken in `encoding` beside plain
    ones, and of `dtypes` beside the model's own.

    Frames are copied by whoever receives them, on the event loop, so closing a transfer is its fence.
    """

    name = NAME
    offers: tuple[Offer, ...] = ()

    def __init__(
        self,
        spec: ModelSpec,
        endpoint: str,
        channel: Callable[[str, str, int], grpc.aio.Channel],
        encoding: Encoding = Encoding.PLAIN,
        dtypes: Iterable[str] = (),
    ) -> None:
        self.codec = FrameCodec(spec, encoding, dtypes)
        self.transfers = OpenTransfers(self.codec)
        self.service = KvService(self.transfers)
        self._endpoint = endpoint
        self._channel = channel

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[GrpcSender]:
        large = len(ticket.pages) * self.codec.max_bytes > 2 * MESSAGE_BYTES
        channels = [self._channel(ticket.endpoint, ticket.role, lane) for lane in range(_LANES if large else 1)]
        async with Scope() as group:
            sender = GrpcSender(ticket, self.codec, channels)
            sender.start(group)
            try:
                yield sender
            finally:
                if not sender.committed:
                    # A receiver that cannot be told notices that the push ended, or is gone itself.
                    with suppress(BatonError):
                        await sender.abort()
                sender.close()

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        """Which pages may land is for the landing behind `sink` to know; nothing has to be prepared for them here."""
        self.transfers.open(transfer, epoch, len(pages), sink)
        return self._endpoint

    async def fence(self, transfer: TransferId) -> None:
        self.transfers.close(transfer)

    def receiving(self) -> int:
        """Transfers that may still land."""
        return len(self.transfers)
