"""Erased sessions at the stores: one transaction, a tombstone that outlives it, and who has been told."""

from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from runtime.domain.erasure import WorkerReceipt
from runtime.domain.sessions import MAIN, Ending, Item, OnConflict, Session, TurnEvent, TurnStatus
from runtime.errors import NotFound, StaleAttempt, Unavailable
from runtime.ids import BootId, SessionId, WorkerId
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.transaction import Database
from tests.store.conftest import Rows
from tests.store.scanning import holding, opened_on, spellings
from tests.store.talking import (
    COMMITTED,
    HERE,
    MASTER,
    OTHER,
    TENANT,
    THERE,
    enqueued,
    key,
    opened,
    record,
    session,
    talked,
)

CANARY = "my dog is called Rumpelstiltskin"
NOWHERE = WorkerReceipt(WorkerId("decode-0"), BootId("boot-a"))
ANSWERED = WorkerReceipt(WorkerId("decode-0"), BootId("boot-a"), 5, 2)


async def test_an_erased_session_leaves_its_tombstone_and_nothing_else(store: SessionStore, rows: Rows) -> None:
    """Invariant 13."""
    sess = await talked(store, 3)
    await store.fork(TENANT, sess, MAIN, None, "other", key("fork"))
    had = {table: count for table, count in (await rows()).items() if count}
    erased = await store.erase(TENANT, sess)
    assert {table: count for table, count in erased.rows.items() if count} == had | {"keys": 1}
    assert set((await rows()).values()) == {0}
    for ask in (store.get(TENANT, sess), store.context(TENANT, sess, MAIN), store.read_out(TENANT, sess)):
        with pytest.raises(NotFound):
            await ask
    assert await store.erase(TENANT, sess) == erased == await store.erasure(TENANT, sess)
    for foreign in (store.erase(OTHER, sess), store.erasure(OTHER, sess)):
        with pytest.raises(NotFound):
            await foreign


async def test_late_writes_of_its_turns_are_refused_and_nobody_takes_them_over(store: SessionStore) -> None:
    sess = await talked(store, 1)
    branch = (await store.context(TENANT, sess, MAIN)).branch
    running = await opened(store, record(sess, "turn-r", branch.place, context=branch.tokens, owner=THERE))
    found = await store.open(enqueued(record(sess, "turn-q", None, owner=THERE), OnConflict.ENQUEUE), None)
    assert found is not None
    await store.append(running, TurnEvent(1, 0, (7,), "seven"))
    await store.erase(TENANT, sess)
    with pytest.raises(StaleAttempt):
        await store.append(running, TurnEvent(2, 1, (8,), "eight"))
    with pytest.raises(StaleAttempt):
        await store.finish(running, COMMITTED, (7, 8), ())
    assert not await store.drop(found[0], Ending(TurnStatus.CANCELLED))
    with pytest.raises(NotFound):
        await store.begin(found[0])
    with pytest.raises(NotFound):
        await store.open(record(sess, "turn-n", branch.place), None)
    assert await store.adopt(HERE, frozenset(), 10) == ()


async def test_who_was_told_is_kept_until_no_late_start_can_come(store: SessionStore) -> None:
    sess = await talked(store, 1)
    await store.erase(TENANT, sess)
    await store.told(sess, NOWHERE)
    assert (await store.erasure(TENANT, sess)).workers == (NOWHERE,)
    await store.told(sess, ANSWERED)
    # Told once more it had nothing left, which is no news.
    await store.told(sess, WorkerReceipt(WorkerId("decode-0"), BootId("boot-a"), 0, 0))
    assert (await store.erasure(TENANT, sess)).workers == (ANSWERED,)
    await store.settle(sess, 60.0)
    assert [erased.session for erased in await store.erasures(None, 9)] == [sess]
    await store.settle(sess, -1.0)
    assert await store.erasures(None, 9) == ()
    assert (await store.erasure(TENANT, sess)).workers == (ANSWERED,)


async def test_a_postgresql_server_has_nothing_of_it_that_could_be_read(database: str) -> None:
    """Its files and its log hold no text, no token and no data key, before and after; its tables hold them sealed."""
    from runtime.store.postgres import PostgresDatabase

    folder = Path(database.rpartition("host=")[2])
    kept = PostgresDatabase(database, MASTER)
    await kept.open()
    store = SqlSessionStore(kept)
    sess = await session(store)
    turn = record(sess, items=(Item("user", CANARY),), prompt=tuple(CANARY.encode()))
    running = await opened(store, turn)
    await store.append(running, TurnEvent(1, 0, (7,), CANARY))
    row = await kept.read(lambda tx: tx.row("SELECT wrapped FROM session_keys"))
    assert row is not None
    key = MASTER.unwrap(sess, row[0])

    async def found() -> set[str]:
        everything = await kept.read(opened_on)
        return {place for place, value in everything if any(each in value for each in spellings(CANARY))}

    def on_disk() -> set[str]:
        return {name for each in (key, *spellings(CANARY)) for name in holding(folder, each)}

    assert await found() == {"items.payload", "turns.prompt", "events.text"}
    assert on_disk() == set()
    erased = await store.erase(TENANT, sess)
    assert not erased.scrubbed, "the server's files are not ours to clear, and the receipt says so"
    assert await found() == set()
    assert await kept.read(lambda tx: tx.row("SELECT wrapped FROM session_keys")) is None
    assert on_disk() == set()
    await kept.write(lambda tx: tx.run("INSERT INTO owners (id, expires) VALUES ($1, 0)", CANARY))
    assert on_disk(), "the same look finds what is not sealed"
    await kept.close()


async def test_files_that_could_not_be_cleared_yet_are_cleared_later(
    store: SessionStore, kept: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sess = await session(store)

    async def busy() -> bool:
        raise Unavailable("somebody reads")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(kept, "scrub", busy)
        assert not (await store.erase(TENANT, sess)).scrubbed
    await store.scrub()
    mine = await kept.scrub()
    assert (await store.erasure(TENANT, sess)).scrubbed is mine


async def test_what_was_erased_while_the_files_were_cleared_is_not_called_cleared(
    store: SessionStore, kept: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await session(store), await session(store, "sess-2")
    clear, busy = kept.scrub, Unavailable("somebody reads")

    async def cleared() -> bool:
        done = await clear()
        monkeypatch.setattr(kept, "scrub", AsyncMock(side_effect=busy))
        await store.erase(TENANT, second)
        return done

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(kept, "scrub", cleared)
        await store.erase(TENANT, first)
        assert not (await store.erasure(TENANT, second)).scrubbed
    mine = await clear()
    assert (await store.erasure(TENANT, first)).scrubbed is mine


async def test_what_was_deleted_is_deleted_also_when_the_files_cannot_be_cleared_now(
    store: SessionStore, kept: Database, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    """Whoever is told that it was not would ask again, and hear that there is no such session."""
    monkeypatch.setattr(kept, "scrub", AsyncMock(side_effect=Unavailable("somebody reads")))
    await store.delete(TENANT, await session(store))
    hidden = await store.create(Session(SessionId("sess-2"), TENANT, "model", 0, rerender=False, hidden=True), None)
    turn = await opened(store, record(hidden.id))
    await store.forget(TENANT, turn.id)
    assert set((await rows()).values()) == {0}


async def test_those_who_are_still_to_be_told_of_are_read_some_at_a_time(store: SessionStore) -> None:
    for number in range(5):
        await store.erase(TENANT, await session(store, f"sess-{number}"))
    seen: list[SessionId] = []
    after = None
    while found := await store.erasures(after, 2):
        assert len(found) <= 2
        seen += [erased.session for erased in found]
        after = found[-1]
    assert sorted(seen) == [f"sess-{number}" for number in range(5)]
