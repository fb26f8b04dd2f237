"""What a store holds that makes no sense: it is refused by whoever asks for it, and stands in nobody's way."""

import sqlite3
from pathlib import Path

import pytest

from runtime.errors import DataCorrupt, Internal
from runtime.ids import TurnId
from runtime.session_store import SessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.conftest import Execute
from tests.store.talking import HERE, MASTER, TENANT, THERE, opened, record, session

DAMAGED = {
    "nothing": "UPDATE turns SET asked = '' WHERE id = 'turn-1'",
    "half of it": "UPDATE turns SET asked = substr(asked, 1, 30) WHERE id = 'turn-1'",
    "an unknown status": "UPDATE turns SET ending = asked WHERE id = 'turn-1'",
}


@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_turn_that_makes_no_sense_keeps_nobody_from_taking_over_the_others(
    store: SessionStore, execute: Execute, damage: str
) -> None:
    broken = await opened(store, record(await session(store, "sess-1"), "turn-1", owner=THERE))
    sound = await opened(store, record(await session(store, "sess-2"), "turn-2", owner=THERE))
    await execute(DAMAGED[damage])
    with pytest.raises(DataCorrupt, match="turn-1"):
        await store.progress(TENANT, broken.session, broken.id, 0)
    (taken,) = await store.adopt(HERE, frozenset(), 10)
    assert (taken.id, taken.epoch) == (sound.id, sound.epoch + 1)


async def test_what_runs_here_is_not_read_to_find_what_was_left(store: SessionStore, execute: Execute) -> None:
    mine = await opened(store, record(await session(store, "sess-1"), "turn-1", owner=HERE))
    await execute(DAMAGED["nothing"])
    assert await store.adopt(HERE, frozenset({TurnId(mine.id)}), 10) == ()


async def test_a_file_that_is_damaged_fails_who_reads_as_who_writes(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
    await database.open()

    for ask in (database.read, database.write):
        with pytest.raises(Internal):
            await ask(lambda tx: _malformed())
    await database.close()


async def _malformed() -> None:
    raise sqlite3.DatabaseError("database disk image is malformed")
