"""Ports: which are free, which are listened on, and how the field at fault is told. Never listens itself."""

import socket
from contextlib import ExitStack

from runtime.errors import StartError


def require_free(host: str, port: int, field: str) -> None:
    """Raises `StartError` naming the configuration field when nobody could listen on `host`:`port` now.

    gRPC servers share a port silently where the kernel lets them, so it must be asked before.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no listener
            probe.bind(address)
    except OSError as error:
        raise StartError(f"{field}: port {port} on {host} cannot be used: {error.strerror}") from error


def require_listener(address: str, field: str, timeout_s: float) -> None:
    """Raises `StartError` naming the configuration field when nobody listens at `address`, host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise StartError(f"{field}: nobody answers at {address}: {error.strerror or error}") from error


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nobody listens on now; somebody may before they are used."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
