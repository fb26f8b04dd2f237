"""A session as one file: how its bytes are laid out, and that they are those that were written. Never looks inside.

magic, version (2 bytes)
records: kind (1 byte), length (4 bytes), body
    session   msgpack: what the session itself says
    rows      msgpack: a table's name, its columns, its rows
    kv        reserved: pages, which whoever has no use for passes by
    end       BLAKE2b-256 of everything before it
Integers are big endian; version 1 knows these kinds.
"""

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from runtime.errors import InvalidArgument, TooLarge
from runtime.store.foreign import MAX_VALUES, Counting, read_session, read_table

MAGIC = b"BATON SESSION\n"
VERSION = 1
MAX_BUNDLE_BYTES = 64 << 20
_DIGEST_BYTES = 32
_HEADER_BYTES = 5
_MAX_RECORDS = 64


class Kind(enum.IntEnum):
    SESSION = 1
    ROWS = 2
    KV = 3
    END = 255


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table, their values in the order of `columns`."""

    table: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bundle:
    session: Mapping[str, Any] = field(repr=False)
    tables: tuple[Rows, ...]


def write_bundle(bundle: Bundle) -> bytes:
    """Raises `TooLarge` naming `session`."""
    if sum(len(row) + 1 for rows in bundle.tables for row in (rows.columns, *rows.rows)) > MAX_VALUES:
        raise too_large()
    digest, pieces, size = hashlib.blake2b(digest_size=_DIGEST_BYTES), [], 0
    for piece in _pieces(bundle):
        size += len(piece)
        if size > MAX_BUNDLE_BYTES - _HEADER_BYTES - _DIGEST_BYTES:
            raise too_large()
        digest.update(piece)
        pieces.append(piece)
    return b"".join((*pieces, _header(Kind.END, _DIGEST_BYTES), digest.digest()))


def read_bundle(data: bytes) -> Bundle:
    """Raises `InvalidArgument` or `TooLarge` naming `bundle`."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise TooLarge(f"a bundle has at most {MAX_BUNDLE_BYTES >> 20} MiB", field="bundle")
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 2:
        raise damaged("it is not a session that Baton has exported")
    version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "big")
    if version != VERSION:
        raise damaged(f"its version is {version}, this Baton reads version {VERSION}")
    records, counting = [*_records(data)], Counting(MAX_VALUES)
    try:
        sessions = [read_session(body) for kind, body in records if kind == Kind.SESSION]
        tables = [Rows(*read_table(body, counting)) for kind, body in records if kind == Kind.ROWS]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise damaged("a record of it makes no sense") from error
    if len(sessions) != 1 or not isinstance(sessions[0], dict):
        raise damaged("it does not hold one session")
    return Bundle(sessions[0], tuple(tables))


def too_large() -> TooLarge:
    told = f"the session is larger than {MAX_BUNDLE_BYTES >> 20} MiB, which is what one file may hold"
    return TooLarge(told, field="session")


def damaged(why: str) -> InvalidArgument:
    return InvalidArgument(f"the bundle cannot be taken in: {why}", field="bundle")


def _pieces(bundle: Bundle) -> Iterator[bytes]:
    yield MAGIC + VERSION.to_bytes(2, "big")
    yield from _record(Kind.SESSION, bundle.session)
    for rows in bundle.tables:
        yield from _record(Kind.ROWS, (rows.table, rows.columns, rows.rows))


def _record(kind: Kind, value: object) -> Iterable[bytes]:
    body: bytes = msgpack.packb(value)
    return _header(kind, len(body)), body


def _header(kind: Kind, length: int) -> bytes:
    return bytes((kind,)) + length.to_bytes(4, "big")


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every record before the end but those of pages, once the digest there was seen to be that of all before it."""
    found, place = [], len(MAGIC) + 2
    kind, body, after = _record_at(data, place)
    while kind != Kind.END:
        if kind != Kind.KV:
            found.append((kind, data[body:after]))
        if len(found) > _MAX_RECORDS:
            raise damaged(f"it holds more than {_MAX_RECORDS} records")
        place = after
        kind, body, after = _record_at(data, place)
    if data[body:after] != hashlib.blake2b(data[:place], digest_size=_DIGEST_BYTES).digest():
        raise damaged("its digest is not that of its content: it was changed, or damaged on its way")
    if len(data) != after:
        raise damaged("something follows its end")
    yield from found


def _record_at(data: bytes, place: int) -> tuple[int, int, int]:
    """Its kind, and where its body begins and ends."""
    body = place + _HEADER_BYTES
    kind, after = data[place : place + 1], body + int.from_bytes(data[place + 1 : body], "big")
    if len(data) < after or not kind:
        raise damaged("it is cut short")
    if kind[0] not in _KINDS:
        raise damaged(f"it holds a record of the unknown kind {kind[0]}")
    return kind[0], body, after
