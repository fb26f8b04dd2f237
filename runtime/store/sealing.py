"""Sealing: a session's payloads are readable with its data key only, and that one with the store's master key.

    seal = await seal_of(tx, session)
    seal.seal(pack(value), "items.payload", turn, number)      what the column holds
    seal.open(row[0], "items.payload", turn, number)           and back

Whatever carries text or token ids is sealed, and bound to its session, its column and its row: moved elsewhere it does
not open. A data key is in one row of `session_keys`, and in memory for as long as a transaction lasts. With that row
gone nothing of the session can be read again, wherever copies of it are.
"""

import os
from hashlib import blake2b

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import DataCorrupt, NotFound
from runtime.ids import SessionId
from runtime.store.transaction import Transaction

KEY_BYTES = 32
_NONCE_BYTES = 12
_AES_256_GCM = b"\1"
_OPENED = "it is damaged, of another row, or under another key"


class Seal:
    """One session's data key."""

    __slots__ = ("_cipher", "_session")

    def __init__(self, session: SessionId, key: bytes) -> None:
        self._session = session
        self._cipher = AESGCM(key)

    def seal(self, value: bytes, column: str, *row: object) -> bytes:
        """`column` is `table.column`, `row` what names its row within the session."""
        return _shut(self._cipher, value, self._bound(column, row))

    def open(self, sealed: bytes, column: str, *row: object) -> bytes:
        """Raises `DataCorrupt` unless it was sealed for this very place."""
        try:
            return _opened(self._cipher, bytes(sealed), self._bound(column, row))
        except (InvalidTag, ValueError) as error:
            place = "/".join(map(str, row)) or self._session
            raise DataCorrupt(f"{column} of {place} cannot be opened: {_OPENED}") from error

    def _bound(self, column: str, row: tuple[object, ...]) -> bytes:
        return "\0".join((self._session, column, *map(str, row))).encode()


class MasterKey:
    """Wraps the data keys of one store. `id` names it without telling it."""

    __slots__ = ("_cipher", "id")

    def __init__(self, secret: bytes) -> None:
        """`secret` has `KEY_BYTES` bytes."""
        self._cipher = AESGCM(secret)
        self.id = blake2b(b"baton sessions", key=secret, digest_size=16).digest()

    def wrap(self, session: SessionId, key: bytes) -> bytes:
        return _shut(self._cipher, key, session.encode())

    def unwrap(self, session: SessionId, wrapped: bytes) -> bytes:
        """Raises `DataCorrupt`."""
        try:
            return _opened(self._cipher, wrapped, session.encode())
        except (InvalidTag, ValueError) as error:
            raise DataCorrupt(f"the data key of session {session} cannot be opened: {_OPENED}") from error


class Seals:
    """The seals that one transaction uses."""

    __slots__ = ("_seals", "master")

    def __init__(self, master: MasterKey) -> None:
        self.master = master
        self._seals: dict[SessionId, Seal] = {}

    def known(self, session: SessionId) -> Seal | None:
        return self._seals.get(session)

    def of(self, session: SessionId, wrapped: bytes) -> Seal:
        """With the data key as its row holds it."""
        seal = self._seals.get(session)
        if seal is None:
            seal = self._seals[session] = Seal(session, self.master.unwrap(session, bytes(wrapped)))
        return seal


async def seal_of(tx: Transaction, session: SessionId) -> Seal:
    """Raises `NotFound` when there is no such session, or its key was destroyed."""
    seal = tx.seals.known(session)
    if seal is not None:
        return seal
    row = await tx.row("SELECT wrapped FROM session_keys WHERE session = $1", session)
    if row is None:
        raise NotFound("there is no such session", field="session")
    return tx.seals.of(session, row[0])


async def new_seal(tx: Transaction, session: SessionId) -> Seal:
    """A fresh data key, stored."""
    wrapped = tx.seals.master.wrap(session, os.urandom(KEY_BYTES))
    await tx.run("INSERT INTO session_keys (session, wrapped) VALUES ($1, $2)", session, wrapped)
    return tx.seals.of(session, wrapped)


def _shut(cipher: AESGCM, value: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return _AES_256_GCM + nonce + cipher.encrypt(nonce, value, bound)


def _opened(cipher: AESGCM, sealed: bytes, bound: bytes) -> bytes:
    if sealed[:1] != _AES_256_GCM:
        raise ValueError("sealed in another way")
    return cipher.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], bound)
