"""Pages by gRPC: the path that exists between any two workers. Both ends of it, on one worker."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import grpc

from runtime.domain.landing import LandingEvent
from runtime.domain.messages import Ticket, TicketPage
from runtime.domain.spec import ModelSpec
from runtime.errors import BatonError
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.receiving import KvService, OpenTransfers
from runtime.kv.transport.sending import GrpcSender

_SMALL_MESSAGES_BYTES = 8 << 20


def message_bytes(spec: ModelSpec) -> int:
    """What a server must be ready to receive in one message, if pages of this model are to land on it."""
    return max(_SMALL_MESSAGES_BYTES, FrameCodec(spec).max_bytes + 1024)


class GrpcTransport:
    """`endpoint` is host:port where others reach `service`; `channel` gives the channel to such an endpoint.

    Frames are copied by whoever receives them, on the event loop, so closing a transfer is its fence.
    """

    name = "grpc"

    def __init__(self, spec: ModelSpec, endpoint: str, channel: Callable[[str], grpc.aio.Channel]) -> None:
        self._codec = FrameCodec(spec)
        self._endpoint = endpoint
        self._channel = channel
        self._transfers = OpenTransfers()
        self.service = KvService(self._codec, self._transfers)

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[GrpcSender]:
        sender = GrpcSender(ticket, self._codec, self._channel(ticket.endpoint))
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
        self._transfers.open(transfer, epoch, sink)
        return self._endpoint

    async def fence(self, transfer: TransferId) -> None:
        self._transfers.close(transfer)

    def receiving(self) -> int:
        """Transfers that may still land."""
        return len(self._transfers)
