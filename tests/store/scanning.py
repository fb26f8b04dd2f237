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


def scan(folder: Path, needle: str, master: MasterKey) -> set[str]:
    """Where the text is: names of files, and `table.column` of what could be opened."""
    return {file.name for file in files(folder) if any(each in file.read_bytes() for each in _spellings(needle))} | {
        place for place, value in opened(folder, master) if any(each in value for each in _spellings(needle))
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
                yield from _values(connection, master)
            connection.close()
            shutil.rmtree(copy)


def _values(connection: sqlite3.Connection, master: MasterKey) -> Iterator[tuple[str, bytes]]:
    seals = {
        session: Seal(SessionId(session), master.unwrap(SessionId(session), wrapped))
        for session, wrapped in connection.execute("SELECT session, wrapped FROM session_keys")
    }
    keys = {table.name: table.key for table in TABLES}
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        for row in cursor:
            values = dict(zip(names, row, strict=True))
            ident = [values[name] for name in keys.get(table, ())]
            for name, value in values.items():
                place = f"{table}.{name}"
                for each in _readings(value, seals.get(values.get("session", values.get("id"))), place, ident):
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


def _spellings(text: str) -> tuple[bytes, ...]:
    """As text, as text of two bytes a character, and as the token ids of the simulated model."""
    return text.encode(), text.encode("utf-16-le"), array("I", [*text.encode()]).tobytes()
