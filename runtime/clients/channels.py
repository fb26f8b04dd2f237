"""The process's gRPC channels, kept and shared by address. Owns how a connection is made and when it counts as dead."""

from collections import OrderedDict
from types import TracebackType
from typing import Self

import grpc

_KEPT = 4096
_RECEIVE_BYTES = 64 << 20
_OPTIONS = (
    # A killed peer breaks its connections at once; a peer that is frozen or parted is noticed by these pings.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that comes back is found soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Who is asked again, and when, is decided where the request is known.
    ("grpc.enable_retries", 0),
    # What goes from worker to worker goes nowhere else.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", _RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
)


class Channels:
    """Channels to the most recently used addresses. Entered, it closes what it has at the end, with all calls on them.

    One that falls out ends when the last call on it does.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int | None], grpc.aio.Channel] = OrderedDict()

    def to(self, address: str) -> grpc.aio.Channel:
        """For calls and streams of small messages."""
        return self._channel(address, None)

    def bulk(self, address: str, lane: int) -> grpc.aio.Channel:
        """A connection of its own for each lane, so that megabytes of pages never delay a token or a cancel."""
        return self._channel(address, lane)

    def __len__(self) -> int:
        return len(self._kept)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._kept:
            _, channel = self._kept.popitem()
            await channel.close(None)

    def _channel(self, address: str, lane: int | None) -> grpc.aio.Channel:
        key = (address, lane)
        channel = self._kept.get(key)
        if channel is None:
            own_connection = (("grpc.use_local_subchannel_pool", 1),) if lane is not None else ()
            channel = self._kept[key] = grpc.aio.insecure_channel(address, options=_OPTIONS + own_connection)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return channel
