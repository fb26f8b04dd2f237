"""Looks for a text, or bytes, in everything that a store's folder holds: raw, and opened with every key there is."""

import shutil
import sqlite3
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from runtime.errors import DataCorrupt
from runtime.ids import SessionId
from runtime.store.content import TABLES
from runtime.store.sealing import MasterKey, Seal
from runtime.store.transaction import Transaction


def scan(folder: Path, needle: str, master: MasterKey) -> set[str]:
    """Where the text is: names of files, and `table.column` of what could be opened."""
    return {file.name for file in files(folder) if any(each in file.read_bytes() for each in spellings(needle))} | {
        place for place, value in opened(folder, master) if any(each in value for each in spellings(needle))
    }


def holding(folder: Path, secret: bytes) -> set[str]:
    """The files with these bytes, as they are, in hexadecimal or base64."""
    return {
        file.name for file in files(folder) if secret in (data := file.read_bytes()) or secret.hex().encode() in data
    }


def files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_socket())


def opened(folder: Path, master: MasterKey) -> Iterator[tuple[str, bytes]]:
    """Every value of every table of every SQLite file, and what it is once opened, inflated and unpacked."""
    for file in files(folder):
        if file.suffix == ".sqlite":
            copy = folder.parent / f"copy-of-{folder.name}"
            copy.mkdir(exist_ok=True)
            for part in folder.glob(f"{file.name}*"):
                shutil.copy(part, copy)
            with sqlite3.connect(copy / file.name) as connection:
                yield from _in_sqlite(connection, master)
            connection.close()
            shutil.rmtree(copy)


async def opened_on(tx: Transaction) -> list[tuple[str, bytes]]:
    """The same of every table of a PostgreSQL database."""
    wrapped = [tuple(row) for row in await tx.rows("SELECT session, wrapped FROM session_keys")]
    named = await tx.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    found: list[tuple[str, bytes]] = []
    for (table,) in named:
        rows = [dict(row) for row in await tx.rows(f"SELECT * FROM {table}")]
        found += _values(table, rows, _seals(wrapped, tx.seals.master))
    return found


def _in_sqlite(connection: sqlite3.Connection, master: MasterKey) -> Iterator[tuple[str, bytes]]:
    seals = _seals(connection.execute("SELECT session, wrapped FROM session_keys").fetchall(), master)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        yield from _values(table, [dict(zip(names, row, strict=True)) for row in cursor], seals)


def _seals(wrapped: list[Any], master: MasterKey) -> dict[str, Seal]:
    return {session: Seal(SessionId(session), master.unwrap(SessionId(session), key)) for session, key in wrapped}


def _values(table: str, rows: list[dict[str, Any]], seals: dict[str, Seal]) -> Iterator[tuple[str, bytes]]:
    key = {each.name: each.key for each in TABLES}.get(table, ())
    for values in rows:
        seal = seals.get(values.get("session", values.get("id")) or "")
        for name, value in values.items():
            place = f"{table}.{name}"
            for each in _readings(value, seal, place, [values[part] for part in key]):
                yield place, each


def _readings(value: Any, seal: Seal | None, place: str, ident: list[Any]) -> Iterator[bytes]:  # noqa: ANN401
    if not isinstance(value, bytes):
        yield str(value).encode()
        return
    yield value
    if seal is not None:
        with suppress(DataCorrupt):
            value = seal.open(value, place, *ident)
            yield value
    with suppress(zlib.error):
        yield zlib.decompress(value[1:])
    with suppress(ValueError, msgpack.UnpackException):
        yield repr(msgpack.unpackb(value)).encode()


def spellings(text: str) -> tuple[bytes, ...]:
    """As text, as text of two bytes a character, and as the token ids of the simulated model."""
    return text.encode(), text.encode("utf-16-le"), array("I", [*text.encode()]).tobytes()
