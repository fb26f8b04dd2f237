"""The settings of TLS and of who may ask, and what may listen where with them."""

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field

from runtime.section import Name, Section

Clients = Literal["open", "keys", "certificates"]


class TlsConfig(Section):
    """Mutual TLS between all members of the mesh and at the gateway's gRPC port, with what `baton certs` makes in
    `folder`: the same path on every node, by default `certs` in the mesh's state. `plaintext` says what may listen
    without TLS beyond this machine: nothing, the HTTP API (behind something that speaks TLS), or everything."""

    enabled: bool = False
    folder: Path | None = None
    plaintext: Literal["loopback", "http", "everywhere"] = "loopback"


class AccessConfig(Section):
    """Who may ask. `clients` show an API key (`baton keys`), by gRPC a certificate of their own, or, when the mesh is
    open, nothing; by default certificates with TLS, and open without. HTTP knows only keys. `tenants` are those that
    requests may be of, each with caches of its own; an open mesh takes all for the first one's. `keys` is the file of
    the API keys' hashes, by default `keys.json` in the mesh's state."""

    clients: Clients | None = None
    tenants: tuple[Name, ...] = Field(default=("default",), min_length=1)
    keys: Path | None = None


def check_listening(tls: TlsConfig, clients: Clients, host: str) -> None:
    """Raises `ValueError` when a gateway at `host` would be unencrypted beyond this machine and nobody said that it
    may, or clients must show certificates that nobody looks at."""
    if clients == "certificates" and not tls.enabled:
        raise ValueError("access.clients: certificates need tls.enabled")
    if tls.plaintext == "everywhere" or is_loopback(host):
        return
    if not tls.enabled:
        raise ValueError(f"gateway.host: {host} is no loopback: set tls.enabled, or tls.plaintext to everywhere")
    if tls.plaintext != "http":
        where = f"gateway.host: the HTTP API, which has no TLS of its own, would listen on {host}"
        raise ValueError(f"{where}: set tls.plaintext to http if what is before it speaks TLS")


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
