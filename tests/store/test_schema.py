"""A store of an older Baton is brought up to date, one of a newer is left alone."""

from pathlib import Path

import pytest

from runtime.errors import StartError
from runtime.ports import SessionStore
from runtime.store import schema
from runtime.store.schema import MIGRATIONS
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database
from tests.store.talking import TENANT, talked


async def test_a_store_of_an_older_version_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sessions.sqlite"
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS[:1])
    older = SqliteDatabase(file)
    await older.open()
    insert = "INSERT INTO keys (scope, name, digest, result) VALUES ('s', 'n', x'00', 'r')"
    await older.write(lambda tx: tx.run(insert))
    await older.close()
    monkeypatch.undo()
    newer = SqliteDatabase(file)
    for _ in range(2):
        await newer.open()
        assert await newer.read(lambda tx: tx.rows("SELECT result, at FROM keys")) == [("r", 0)]
        assert await newer.read(lambda tx: tx.row("SELECT version FROM schema_version")) == (len(MIGRATIONS),)
        await newer.close()
        newer = SqliteDatabase(file)


async def test_a_store_of_a_newer_version_is_not_touched(kept: Database, store: SessionStore) -> None:
    await talked(store, 1)
    await kept.write(lambda tx: tx.run("UPDATE schema_version SET version = 99"))
    with pytest.raises(StartError, match=r"has version 99.*newer"):
        await kept.write(schema.migrate)
    assert len(await store.list(TENANT, None, 5)) == 1


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sessions.sqlite"
    file.write_text("what is this? " * 100)
    database = SqliteDatabase(file)
    with pytest.raises(StartError, match=r"sessions\.store: .*sessions\.sqlite cannot be used"):
        await database.open()
    await database.close()
