"""Secrets in files of their own, for their owner only. Never logs or prints one."""

import os
import secrets
from pathlib import Path

from runtime.errors import StartError

_BYTES = 32


def open_secret(file: Path, field: str, what: str) -> bytes:
    """The 32 bytes of a file; one that is not there yet is made.

    Raises `StartError` naming `field` when it cannot be read or made, holds something else than `what`, or is open to
    others.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            _create(file)
        secret, mode = file.read_bytes(), file.stat().st_mode
    except OSError as error:
        raise StartError(f"{field}: {error.filename or file}: {error.strerror}") from error
    if len(secret) != _BYTES:
        raise StartError(f"{field}: {file} holds {len(secret)} bytes, {what} has {_BYTES}")
    if mode & 0o077:
        raise StartError(f"{field}: {file} is open to others than its owner: chmod 600 {file}")
    return secret


def _create(file: Path) -> None:
    """Whole or not at all, and never over a secret that another process made meanwhile."""
    fresh = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as target:
            target.write(secrets.token_bytes(_BYTES))
            target.flush()
            os.fsync(target.fileno())
        try:
            os.link(fresh, file)
        except FileExistsError:
            return
    finally:
        fresh.unlink()
