"""How a client trusts a mesh and shows it who it is. Never prints a secret."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import grpc

Metadata = tuple[tuple[str, str], ...]
S = TypeVar("S")
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\n.*?-----END \1-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """`authorities` are whom to trust, as PEM: without them the connection is unencrypted. `certificate` is a private
    key and its certificate, as PEM. `api_key` goes with every call. `server_name` is what the gateway's certificate is
    looked for under, when that is not the target's host."""

    authorities: bytes | None = None
    certificate: bytes | None = None
    api_key: str | None = None
    server_name: str | None = None

    @classmethod
    def read(cls, authorities: Path, certificate: Path | None = None) -> Self:
        """From the files that `baton certs` makes."""
        return cls(authorities.read_bytes(), certificate.read_bytes() if certificate else None)

    @classmethod
    def from_environment(cls) -> Self:
        """`BATON_CA` and `BATON_CERTIFICATE` are paths, `BATON_API_KEY` is a key, each only where it is needed."""
        authorities, certificate = os.environ.get("BATON_CA"), os.environ.get("BATON_CERTIFICATE")
        return cls(
            Path(authorities).read_bytes() if authorities else None,
            Path(certificate).read_bytes() if certificate else None,
            os.environ.get("BATON_API_KEY") or None,
        )

    @property
    def metadata(self) -> Metadata | None:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else None

    @property
    def options(self) -> Metadata:
        """Of a channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    @property
    def of_channel(self) -> grpc.ChannelCredentials | None:
        """None without TLS."""
        if self.authorities is None:
            return None
        blocks = [(match[1], match[0]) for match in _BLOCK.finditer(self.certificate or b"")]
        key = b"".join(block for kind, block in blocks if kind.endswith(b"PRIVATE KEY"))
        chain = b"".join(block for kind, block in blocks if kind == b"CERTIFICATE")
        return grpc.ssl_channel_credentials(self.authorities, key or None, chain or None)


def showing(stub: S, metadata: Metadata | None) -> S:
    """A stub whose every call has `metadata`."""
    return cast("S", _Showing(stub, metadata)) if metadata else stub


class _Showing:
    def __init__(self, stub: object, metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(getattr(self._stub, name), metadata=self._metadata)
