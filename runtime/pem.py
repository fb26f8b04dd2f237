"""A process's key, its certificate and the authorities it trusts, from files that may be replaced while it runs.

A key and its certificate are in one file, so that they change together. Nothing here prints or logs one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import StartError
from runtime.watched import Watched

AUTHORITIES = "ca.pem"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\n.*?-----END \1-----\n", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)
class Pem:
    key: bytes
    chain: bytes
    authorities: bytes


class PemFiles:
    """`name`.pem and ca.pem in `folder`. Raises `StartError` naming the file that is not there or makes no sense."""

    def __init__(self, folder: Path, name: str) -> None:
        own = folder / f"{name}.pem"
        try:
            self._watched = Watched((own, folder / AUTHORITIES), _parse)
        except OSError as error:
            how = "`baton certs` makes it"
            raise StartError(f"tls.folder: {error.filename}: {error.strerror}; {how}") from error
        except ValueError as error:
            raise StartError(f"tls.folder: {own}: {error}") from error

    def current(self) -> Pem:
        """The same object as long as no file was replaced."""
        return self._watched.current()


def _parse(contents: Sequence[bytes]) -> Pem:
    own, authorities = contents
    key, chain = split_pem(own)
    if b"-----BEGIN CERTIFICATE-----" not in authorities:
        raise ValueError(f"{AUTHORITIES} holds no certificate")
    return Pem(key, chain, authorities)


def split_pem(content: bytes) -> tuple[bytes, bytes]:
    """The key, and the certificates with that which it belongs to first. Raises `ValueError`."""
    blocks = [(match[1], match[0]) for match in _BLOCK.finditer(content)]
    keys = [block for kind, block in blocks if kind.endswith(b"PRIVATE KEY")]
    chain = [block for kind, block in blocks if kind == b"CERTIFICATE"]
    if len(keys) != 1 or not chain:
        raise ValueError("must hold one private key and its certificate")
    return keys[0], b"".join(chain)
