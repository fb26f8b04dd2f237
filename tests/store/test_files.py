"""A store's files: of an older Baton brought up to date, of a newer left alone, of what was deleted emptied."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from runtime.domain.sessions import MAIN, Item, TurnEvent
from runtime.errors import StartError
from runtime.session_store import SessionStore
from runtime.store import schema
from runtime.store.schema import MIGRATIONS
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database
from tests.scale import scaled
from tests.store.scanning import holding, scan
from tests.store.talking import COMMITTED, MASTER, TENANT, THERE, committed, opened, record, session, talked


async def test_a_store_of_an_older_version_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sessions.sqlite"
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS[:1])
    older = SqliteDatabase(file, MASTER)
    await older.open()
    insert = "INSERT INTO keys (scope, name, digest, result) VALUES ('s', 'n', x'00', 'r')"
    await older.write(lambda tx: tx.run(insert))
    await older.close()
    monkeypatch.undo()
    newer = SqliteDatabase(file, MASTER)
    for _ in range(2):
        await newer.open()
        assert await newer.read(lambda tx: tx.rows("SELECT result, at FROM keys")) == [("r", 0)]
        assert await newer.read(lambda tx: tx.row("SELECT version FROM schema_version")) == (len(MIGRATIONS),)
        await newer.close()
        newer = SqliteDatabase(file, MASTER)


async def test_a_store_of_a_newer_version_is_not_touched(kept: Database, store: SessionStore) -> None:
    await talked(store, 1)
    await kept.write(lambda tx: tx.run("UPDATE schema_version SET version = 99"))
    with pytest.raises(StartError, match=r"has version 99.*newer"):
        await kept.write(schema.migrate)
    assert len(await store.list(TENANT, None, 5)) == 1


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sessions.sqlite"
    file.write_text("what is this? " * 100)
    database = SqliteDatabase(file, MASTER)
    with pytest.raises(StartError, match=r"sessions\.store: .*sessions\.sqlite cannot be used"):
        await database.open()
    await database.close()


async def test_what_was_deleted_is_in_no_file_any_more(tmp_path: Path) -> None:
    """The same look finds it before."""
    canary = "my dog is called Rumpelstiltskin"
    folder = tmp_path / "state"
    database = SqliteDatabase(folder / "sessions.sqlite", MASTER)
    await database.open()
    store = SqlSessionStore(database)
    other = await session(store, "sess-other")
    sess = await session(store)
    for number in range(40):
        base = (await store.context(TENANT, sess, MAIN)).branch
        items = (Item("user", f"{canary}, {number} times. " * 40),)
        turn = record(sess, f"turn-{number}", base.place, context=base.tokens, items=items)
        running = await opened(store, turn)
        await store.append(running, TurnEvent(1, 0, (7, 8), canary))
        await store.finish(running, COMMITTED, (7, 8), (TurnEvent(1, 0, (7, 8), canary),))
    assert scan(folder, canary, MASTER)
    wrapped = await database.read(lambda tx: tx.row("SELECT wrapped FROM session_keys WHERE session = $1", sess))
    assert wrapped is not None
    assert holding(folder, wrapped[0])
    await asyncio.gather(store.delete(TENANT, sess), *(store.get(TENANT, other) for _ in range(50)))
    assert scan(folder, canary, MASTER) | holding(folder, wrapped[0]) == set()
    await store.get(TENANT, other)
    await database.close()


async def test_wherever_a_loss_of_power_cuts_the_log_what_was_acknowledged_before_is_there_and_nothing_half(
    tmp_path: Path,
) -> None:
    """Invariant 3. The log up to an acknowledgement was flushed; of what comes after it any part may be missing."""
    live = tmp_path / "live"
    database = SqliteDatabase(live / "sessions.sqlite", MASTER)
    await database.open()
    store = SqlSessionStore(database)
    sess = await session(store)
    log = live / "sessions.sqlite-wal"
    acknowledged = [log.stat().st_size]
    for number in range(6):
        base = (await store.context(TENANT, sess, MAIN)).branch
        await committed(store, record(sess, f"turn-{number}", base.place, context=base.tokens))
        acknowledged.append(log.stat().st_size)
    assert acknowledged == sorted(set(acknowledged)), "the log was not emptied meanwhile"
    whole, written = (live / "sessions.sqlite").read_bytes(), log.read_bytes()
    await database.close()
    for number, cut in enumerate({*acknowledged, *range(acknowledged[0], len(written), scaled(6007, 512))}):
        after = tmp_path / f"after-{number}"
        after.mkdir()
        (after / "sessions.sqlite").write_bytes(whole)
        (after / "sessions.sqlite-wal").write_bytes(written[:cut])
        cut_short = SqliteDatabase(after / "sessions.sqlite", MASTER)
        await cut_short.open()
        kept = SqlSessionStore(cut_short)
        context = await kept.context(TENANT, sess, MAIN)
        turns = sum(size <= cut for size in acknowledged) - 1
        assert context.branch.place.depth == turns, cut
        assert len(await kept.items(TENANT, sess, MAIN, 0, 100)) == 2 * turns
        taken = await kept.adopt(THERE, frozenset(), 10)
        assert len(taken) <= 1, "at most the turn that was being committed"
        await cut_short.close()


async def test_others_write_while_somebody_reads_what_is_to_be_emptied(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
    await database.open()
    await session(SqlSessionStore(database))
    reader = sqlite3.connect(tmp_path / "sessions.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sessions").fetchone()
    await session(SqlSessionStore(database), "sess-2")
    async with asyncio.TaskGroup() as group:
        emptying = group.create_task(database.scrub())
        await asyncio.sleep(0.1)
        for number in range(3, 13):
            async with asyncio.timeout(2):
                await session(SqlSessionStore(database), f"sess-{number}")
        assert not emptying.done()
        reader.execute("ROLLBACK")
        assert await emptying
    reader.close()
    assert (tmp_path / "sessions.sqlite-wal").stat().st_size == 0
    await database.close()
