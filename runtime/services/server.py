"""A gRPC server: its port, its limits, its TLS, health and reflection. Serves whatever services it is given."""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime.errors import StartError
from runtime.pem import Pem, PemFiles
from runtime.services.access import Access
from runtime.services.guard import Guard

MESSAGE_BYTES = 8 << 20
_MAX_CALLS = 10_000
_MAX_CALLS_PER_CONNECTION = 1024
_MAX_HEADER_BYTES = 16 << 10
_KEEPALIVE_S = 10
_HANDSHAKE_S = 10
_IDLE_S = 600


class Service(Protocol):
    """A servicer that knows its name."""

    name: str

    def add_to(self, server: grpc.aio.Server) -> None: ...


@dataclass(frozen=True, slots=True)
class Tls:
    """`mutual`: who shows no certificate of the mesh's authorities is not let in."""

    files: PemFiles
    mutual: bool = True


class GrpcServer:
    """Binds at once, on the running event loop, so that `port` is known before there is anything to serve; serves
    while entered.

    `port` 0 takes any free one. `shared`: several processes of this machine listen on the port and the kernel deals
    out connections; a port that was not meant to be shared is never shared, whatever gRPC's default.
    `message_bytes` bounds what is received. `grace_s`: how long calls may go on after the end; then they are cancelled.
    Without `tls` it is unencrypted, without `access` everybody may call everything. Raises `StartError` naming the
    port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        shared: bool = False,
        message_bytes: int = MESSAGE_BYTES,
        grace_s: float = 0.0,
        tls: Tls | None = None,
        access: Access | None = None,
    ) -> None:
        self._grace_s = grace_s
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in its stubs
        self._server = grpc.aio.server(
            interceptors=(Guard(access),),
            options=(
                ("grpc.so_reuseport", int(shared)),
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
                ("grpc.max_metadata_size", _MAX_HEADER_BYTES),
                ("grpc.absolute_max_metadata_size", _MAX_HEADER_BYTES),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S * 1000),
                ("grpc.max_connection_idle_ms", _IDLE_S * 1000),
                ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_S * 500),
                # Clients of ours ping every 10 s; gRPC's default calls that an attack.
                ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_S * 500),
            ),
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        self.port = self._bind(host, port, tls)

    def add(self, *services: Service) -> None:
        """Before the server is entered."""
        for service in services:
            service.add_to(self._server)
            self._names.append(service.name)

    async def drain(self) -> None:
        """Tell health checks that this server is about to stop; calls are still taken."""
        await self._health.enter_graceful_shutdown()

    async def __aenter__(self) -> Self:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(self._names, self._server)
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._server.stop(self._grace_s)

    def _bind(self, host: str, port: int, tls: Tls | None) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            raise StartError(f"port {port} on {host} cannot be listened on; is it in use?") from error


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """gRPC asks before every handshake whether there is anything new, from a thread of its own."""
    used = tls.files.current()

    def renewed() -> "grpc.ServerCertificateConfiguration | None":
        nonlocal used
        now = tls.files.current()
        if now is used:
            return None
        used = now
        return _configuration(now)

    # Its stubs forget that there may be nothing new.
    return grpc.dynamic_ssl_server_credentials(_configuration(used), renewed, tls.mutual)  # type: ignore[arg-type]


def _configuration(pem: Pem) -> "grpc.ServerCertificateConfiguration":
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.authorities)
