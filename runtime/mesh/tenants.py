"""The secrets that keep tenants' pages apart. Owns where they are kept; never logs or prints one."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.errors import StartError
from runtime.ids import TenantId

DEFAULT = TenantId("default")
_SECRET_BYTES = 32


def open_tenants(state: Path, names: Sequence[str]) -> Mapping[TenantId, bytes]:
    """The mesh's tenants and their secrets; one that is not there yet is made.

    Raises `StartError` when a file cannot be read or made, or holds something else.
    """
    return {TenantId(name): _open(state / f"tenant-{name}.secret", state) for name in names}


def _open(file: Path, state: Path) -> bytes:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            _create(file)
        secret = file.read_bytes()
    except OSError as error:
        raise StartError(f"mesh.state: {error.filename or file}: {error.strerror}") from error
    if len(secret) != _SECRET_BYTES:
        raise StartError(f"mesh.state: {file} holds {len(secret)} bytes, a tenant's secret has {_SECRET_BYTES}")
    return secret


def _create(file: Path) -> None:
    """Whole or not at all, and never over a secret that another process made meanwhile."""
    fresh = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as target:
            target.write(secrets.token_bytes(_SECRET_BYTES))
            target.flush()
            os.fsync(target.fileno())
        try:
            os.link(fresh, file)
        except FileExistsError:
            return
    finally:
        fresh.unlink()
