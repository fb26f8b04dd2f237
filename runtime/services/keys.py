"""API keys: how one is made, kept as a hash, and recognized. Owns the key file; never holds or logs a key itself."""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.domain.identity import Caller, Role
from runtime.errors import NotFound, PermissionDenied, StartError, Unauthenticated
from runtime.ids import TenantId
from runtime.watched import Watched

_KEY = re.compile(r"baton_([0-9a-f]{8})_([0-9a-f]{64})")
_NOBODYS = bytes(32)


class KeyEntry(BaseModel):
    """What is known of a key: its public id, whose it is, and the SHA-256 of all of it. A key has 256 random bits, so
    that a plain hash gives nothing away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    tenant: str | None = None
    role: Literal[Role.CLIENT, Role.ADMIN] = Role.CLIENT
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[KeyEntry, ...] = ()


def new_key(caller: Caller) -> tuple[str, KeyEntry]:
    """A fresh key, which only the caller keeps, and what is kept of it here."""
    ident = secrets.token_hex(4)
    key = f"baton_{ident}_{secrets.token_hex(32)}"
    admin = caller.role is Role.ADMIN
    kept = KeyEntry(
        id=ident,
        tenant=caller.tenant,
        role=Role.ADMIN if admin else Role.CLIENT,
        sha256=_digest(key).hex(),
    )
    return key, kept


def read_keys(file: Path) -> tuple[KeyEntry, ...]:
    """Empty when there is no such file. Raises `StartError` when it cannot be read or makes no sense."""
    try:
        return Watched((file,), _parse, optional=True).current()
    except (OSError, ValueError) as error:
        raise StartError(f"access.keys: {file}: {error}") from error


def write_keys(file: Path, keys: Sequence[KeyEntry]) -> None:
    """Whole or not at all: gateways read it whenever it was replaced."""
    entries = [entry.model_dump(mode="json", exclude_none=True) for entry in keys]
    _write(file, json.dumps({"keys": entries}, indent=2) + "\n")


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as target:
        target.write(content)
    fresh.replace(file)


def admin_key(file: Path, state: Path) -> str:
    """The key that whoever runs the mesh on this machine shows it: made, and kept in `state`, when it is not yet.

    Raises `StartError` when the key file makes no sense, `OSError` when a file cannot be read or written.
    """
    kept = state / "admin.key"
    known = read_keys(file)
    try:
        key = kept.read_text().strip()
        if any(entry.sha256 == _digest(key).hex() for entry in known):
            return key
    except FileNotFoundError:
        pass
    key, entry = new_key(Caller(Role.ADMIN))
    write_keys(file, (*known, entry))
    _write(kept, key + "\n")
    return key


def without(keys: Sequence[KeyEntry], ident: str) -> tuple[KeyEntry, ...]:
    """Raises `NotFound` when there is no key of this id."""
    left = tuple(entry for entry in keys if entry.id != ident)
    if len(left) == len(keys):
        raise NotFound(f"there is no key {ident}")
    return left


class KeyRing:
    """The keys of a file, whatever it holds at the moment, of the tenants that are served here.

    Without a file there are none. Raises `StartError` when it makes no sense.
    """

    def __init__(self, file: Path, tenants: Sequence[TenantId]) -> None:
        self._tenants = frozenset(tenants)
        self._known: tuple[tuple[KeyEntry, ...], dict[str, KeyEntry]] = ((), {})
        try:
            self._watched = Watched((file,), _parse, optional=True)
        except (OSError, ValueError) as error:
            raise StartError(f"access.keys: {file}: {error}") from error

    def caller(self, key: str) -> Caller:
        """Raises `Unauthenticated`, or `PermissionDenied` when the key's tenant is not served here. Takes as long for a
        key that is nearly right as for one that is all wrong."""
        match = _KEY.fullmatch(key)
        entry = self._by_id().get(match[1]) if match else None
        expected = bytes.fromhex(entry.sha256) if entry else _NOBODYS
        right = hmac.compare_digest(_digest(key), expected)
        if entry is None or not right:
            raise Unauthenticated("the API key is not known here")
        if entry.role is Role.ADMIN:
            return Caller(Role.ADMIN)
        if entry.tenant not in self._tenants:
            raise PermissionDenied("the tenant of this API key is not served here")
        return Caller(entry.role, TenantId(entry.tenant))

    def _by_id(self) -> dict[str, KeyEntry]:
        keys = self._watched.current()
        if keys is not self._known[0]:
            self._known = keys, {entry.id: entry for entry in keys}
        return self._known[1]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _parse(contents: Sequence[bytes]) -> tuple[KeyEntry, ...]:
    keys = _Content.model_validate_json(contents[0]).keys if contents[0] else ()
    if any((entry.role is Role.CLIENT) != (entry.tenant is not None) for entry in keys):
        raise ValueError("a key is of a tenant, or of the role admin")
    return keys
