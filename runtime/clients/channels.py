"""The process's gRPC channels, kept and shared by address. Owns how a connection is made and when it counts as dead."""

from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from runtime.domain.identity import Role, server_name
from runtime.pem import Pem, PemFiles

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


@dataclass(frozen=True, slots=True)
class MemberTls:
    """What a member of `mesh` shows, and trusts."""

    files: PemFiles
    mesh: str


_Key = tuple[str, Role, int | None]


class Channels:
    """Channels to the most recently used addresses. Entered, it closes what it has at the end, with all calls on them.

    One that falls out ends when the last call on it does. With `tls` whoever is called must be of the role that the
    caller looks for. When the files behind it are replaced, so are the channels: ask for one anew for each call.
    """

    def __init__(self, tls: MemberTls | None = None) -> None:
        self._kept: OrderedDict[_Key, grpc.aio.Channel] = OrderedDict()
        self._tls = tls
        self._pem: Pem | None = None
        # What was kept before the files were replaced: a call that takes several steps has its channel until then.
        self._outdated: list[grpc.aio.Channel] = []

    def to(self, address: str, role: Role) -> grpc.aio.Channel:
        """For calls and streams of small messages to a member of this role."""
        return self._channel((address, role, None))

    def bulk(self, address: str, role: str, lane: int) -> grpc.aio.Channel:
        """A connection of its own for each lane to a worker of this role, so that megabytes of pages never delay a
        token or a cancel."""
        return self._channel((address, Role(role), lane))

    def __len__(self) -> int:
        return len(self._kept)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channels, self._outdated = [*self._kept.values(), *self._outdated], []
        self._kept.clear()
        for channel in channels:
            await channel.close(None)

    def _channel(self, key: _Key) -> grpc.aio.Channel:
        if self._tls is not None and (pem := self._tls.files.current()) is not self._pem:
            self._outdated = [*self._kept.values()]
            self._kept.clear()
            self._pem = pem
        channel = self._kept.get(key)
        if channel is None:
            channel = self._kept[key] = self._opened(key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return channel

    def _opened(self, key: _Key) -> grpc.aio.Channel:
        address, role, lane = key
        options = _OPTIONS + ((("grpc.use_local_subchannel_pool", 1),) if lane is not None else ())
        if self._tls is None or self._pem is None:
            return grpc.aio.insecure_channel(address, options=options)
        pem = self._pem
        credentials = grpc.ssl_channel_credentials(pem.authorities, pem.key, pem.chain)
        named = ("grpc.ssl_target_name_override", server_name(self._tls.mesh, role))
        return grpc.aio.secure_channel(address, credentials, options=(*options, named))
