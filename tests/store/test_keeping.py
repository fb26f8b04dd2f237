"""What is kept of a session's KV, in each of the stores: held in reserve, told, spent once, never for ever. And who
resolves calls is heard of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.domain.notices import Change, What
from runtime.domain.retention import Holding, KeptFor, KeptIn, Pause, Refusal, Retained, Retention
from runtime.domain.sessions import MAIN, Ending, Policies, Session, StopReason, TurnRecord
from runtime.domain.spending import NOTHING, Account, Amounts, Limits, Reserve
from runtime.domain.tools import ToolCall, ToolResult
from runtime.errors import Internal, Unavailable
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store import schema
from runtime.store.schema import MIGRATIONS
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database
from tests.store.conftest import Execute
from tests.store.talking import (
    COMMITTED,
    EVENTS,
    MASTER,
    OUTPUT,
    TENANT,
    THERE,
    committed,
    enqueued,
    key,
    opened,
    record,
    session,
    talked,
)

KEPT = Retained(Pause.ANSWER, 64, 1000, 60_000)
ENDED = replace(COMMITTED, retained=KEPT)
HELD = Amounts(30, 30, 16, 1, 1000, 100_000)
HOUR = 3_600_000


async def finished(store: SessionStore, sess: SessionId, ending: Ending = ENDED) -> TurnRecord:
    turn = await opened(store, replace(record(sess), reserve=Reserve(HELD)))
    for _ in range(2):  # the acknowledgement of the first was lost
        await store.finish(turn, ending, OUTPUT, EVENTS)
    return turn


async def spending(store: SessionStore, sess: SessionId) -> tuple[Amounts, Amounts]:
    account = (await store.get(TENANT, sess))[0].account
    return account.used, account.held


async def holding(store: SessionStore, sess: SessionId, branch: str = MAIN) -> Holding | None:
    (found,) = [each for each in (await store.get(TENANT, sess))[1] if each.name == branch]
    return found.holding


async def test_what_keeping_may_come_to_is_held_and_the_branch_says_what_is_kept(store: SessionStore) -> None:
    sess = await session(store)
    turn = await finished(store, sess)
    assert await spending(store, sess) == (NOTHING, Amounts(kv_byte_seconds=60_000))
    found = await holding(store, sess)
    assert found is not None
    assert replace(found, remaining_ms=0) == Holding(Pause.ANSWER, 64, 1000, 0, KeptIn.POOL)
    assert 30_000 < found.remaining_ms <= 60_000
    ending = (await store.progress(TENANT, sess, turn.id, 0)).turn.ending
    assert ending is not None
    assert ending.retained == KEPT
    await store.fork(TENANT, sess, MAIN, None, "other", None)
    assert await holding(store, sess, "other") is not None, "it stands on the same turn"


async def test_a_grant_that_is_over_is_spent_once_and_no_more_than_it_held(store: SessionStore) -> None:
    sess = await session(store)
    turn = await finished(store, sess)
    for spent in (10_000, 20_000):
        await store.book(KeptFor(sess, turn.id, spent))
        assert await spending(store, sess) == (Amounts(kv_byte_seconds=10_000), NOTHING)
    assert await holding(store, sess) is None
    await store.book(KeptFor(sess, TurnId("turn-none"), 5))
    await store.book(KeptFor(SessionId("sess-none"), turn.id, 5))
    assert await spending(store, sess) == (Amounts(kv_byte_seconds=10_000), NOTHING)
    other = await session(store, "sess-2")
    late = await opened(store, replace(record(other, "turn-2"), reserve=Reserve(HELD)))
    await store.book(KeptFor(other, late.id, 5))
    assert await spending(store, other) == (NOTHING, HELD), "it runs, and its worker tells of an older attempt"
    await store.finish(late, ENDED, OUTPUT, EVENTS)
    await store.book(KeptFor(other, late.id, 10**9))
    assert await spending(store, other) == (Amounts(kv_byte_seconds=60_000), NOTHING)


async def test_what_was_refused_holds_nothing(store: SessionStore) -> None:
    sess = await session(store)
    turn = await finished(store, sess, replace(ENDED, retained=Retained(Pause.TOOLS, refusal=Refusal.TENANT_QUOTA)))
    assert await spending(store, sess) == (NOTHING, NOTHING)
    assert await holding(store, sess) is None
    ending = (await store.progress(TENANT, sess, turn.id, 0)).turn.ending
    assert ending is not None
    assert ending.retained == Retained(Pause.TOOLS, refusal=Refusal.TENANT_QUOTA)


async def test_what_no_worker_told_of_comes_back_a_minute_after_its_end(store: SessionStore, execute: Execute) -> None:
    sess = await session(store)
    await finished(store, sess)
    await execute("UPDATE turns SET kept_until = now_ms() - 59000")
    await store.sweep(10)
    assert (await spending(store, sess))[1] != NOTHING
    assert await holding(store, sess) is None
    await execute("UPDATE turns SET kept_until = now_ms() - 60001")
    await store.sweep(10)
    assert await spending(store, sess) == (NOTHING, NOTHING)


async def test_a_branch_that_is_dropped_holds_nothing_any_more(store: SessionStore) -> None:
    sess = await session(store)
    place = (await store.fork(TENANT, sess, MAIN, None, "other", None)).place
    turn = await opened(store, replace(record(sess, "turn-2", place, branch="other"), reserve=Reserve(HELD)))
    await store.finish(turn, ENDED, OUTPUT, EVENTS)
    await store.drop_branch(TENANT, sess, "other")
    assert await spending(store, sess) == (NOTHING, NOTHING)


async def test_what_is_asked_for_is_remembered(store: SessionStore) -> None:
    sess = await session(store)
    await store.update(TENANT, sess, Change(policies=Policies(retention=Retention(5, 7))), None)
    assert (await store.get(TENANT, sess))[0].policies.retention == Retention(5, 7)
    for number, asked in enumerate((None, Retention(), Retention(3, 0))):
        other = await session(store, f"sess-{number + 2}")
        turn = await opened(store, record(other, f"turn-{number}", retention=asked))
        assert (await store.progress(TENANT, other, turn.id, 0)).turn.asked.retention == asked


async def test_who_resolves_calls_is_heard_of_and_the_session_lives_on(store: SessionStore, execute: Execute) -> None:
    sess = await session(store)
    await store.update(TENANT, sess, Change(ttl_ms=HOUR), None)
    calls = (ToolCall("call-1", "weather", "{}"), ToolCall("call-2", "weather", "{}"))
    ending = replace(COMMITTED, stop=StopReason.TOOL_CALLS, calls=calls)
    turn = await committed(store, record(sess), ending)
    before = (await store.get(TENANT, sess))[0].account.notices
    await execute("UPDATE accounts SET expires = now_ms() + 1000")
    for _ in range(2):  # the answer to the first was lost
        await store.submit(TENANT, sess, MAIN, [ToolResult("call-1", "Rain.")], key("submit"))
    account = (await store.get(TENANT, sess))[0].account
    assert account.expires_in_ms is not None
    assert account.expires_in_ms > HOUR - 60_000
    (notice,) = await store.notices(TENANT, sess, before, 10)
    assert (notice.happening.what, notice.happening.branch, notice.happening.turn) == (What.RESOLVED, MAIN, turn.id)


async def test_what_keeping_may_still_come_to_does_not_keep_the_session_from_coming_back(store: SessionStore) -> None:
    """All that its budget has left is held for a grant, which is over when the session is back."""
    account = Account(Limits(kv_byte_seconds=60_000))
    sess = (await store.create(Session(SessionId("sess-1"), TENANT, "model", 0, account=account), None)).id
    first = await finished(store, sess)
    assert (await spending(store, sess))[1] == Amounts(kv_byte_seconds=60_000)
    base = (await store.context(TENANT, sess, MAIN)).branch
    again = replace(record(sess, "turn-2", base.place, context=base.tokens), reserve=Reserve(HELD))
    running = await opened(store, again)
    used, held = await spending(store, sess)
    assert used.kv_byte_seconds < 30_000, "it was away for a moment"
    assert used.kv_byte_seconds + held.kv_byte_seconds == 60_000
    assert held == running.reserve.held
    assert await holding(store, sess) is None
    await store.book(KeptFor(sess, first.id, 50_000))
    assert await spending(store, sess) == (used, held), "it is told too late"


async def test_a_turn_that_waited_begins_on_what_a_grant_before_it_held(store: SessionStore) -> None:
    account = Account(Limits(kv_byte_seconds=60_000))
    sess = (await store.create(Session(SessionId("sess-1"), TENANT, "model", 0, account=account), None)).id
    turn = await opened(store, replace(record(sess), reserve=Reserve(HELD)))
    waiting = await opened(store, replace(enqueued(record(sess, "turn-2", None)), reserve=Reserve(HELD)))
    await store.finish(turn, ENDED, OUTPUT, EVENTS)
    base = (await store.context(TENANT, sess, MAIN)).branch
    prepared = record(sess, "turn-2", base.place, context=base.tokens).prepared
    begun = await store.begin(replace(waiting, prepared=prepared, reserve=Reserve(HELD)))
    assert begun is not None
    assert begun.reserve.held.kv_byte_seconds > 30_000


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_store_from_before_anything_was_kept_goes_on_with_all_that_it_has(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turns that ran run on, end, and may be kept."""
    where = None if kind == "sqlite" else request.getfixturevalue("database")
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS[:6])
    async with _opened(tmp_path, where) as older:
        sess = await talked(SqlSessionStore(older), 2)
        base = (await SqlSessionStore(older).context(TENANT, sess, MAIN)).branch
        under_way = replace(record(sess, "turn-9", base.place, context=base.tokens), reserve=Reserve(HELD))
        running = await opened(SqlSessionStore(older), under_way)
        missing = "SELECT COUNT(kept_until) FROM turns"
        with pytest.raises(Internal if where else Unavailable):
            await older.read(lambda tx: tx.row(missing))
    monkeypatch.undo()
    async with _opened(tmp_path, where) as newer:
        store = SqlSessionStore(newer)
        (counted,) = await newer.read(lambda tx: tx.rows(missing))
        assert counted[0] == 0
        assert (await holding(store, sess), (await spending(store, sess))[1]) == (None, HELD)
        (adopted,) = await store.adopt(THERE, frozenset(), 10)
        assert (adopted.id, adopted.reserve) == (running.id, running.reserve)
        await store.finish(adopted, ENDED, OUTPUT, EVENTS)
        assert await holding(store, sess) is not None
        await store.book(KeptFor(sess, running.id, 5))
        assert await spending(store, sess) == (Amounts(kv_byte_seconds=5), NOTHING)
        assert (await store.context(TENANT, sess, MAIN)).tokens == (100, 7, 8, 101, 7, 8, 1, 2, 3, 7, 8)


@asynccontextmanager
async def _opened(folder: Path, dsn: str | None) -> AsyncIterator[Database]:
    if dsn is None:
        lite = SqliteDatabase(folder / "sessions.sqlite", MASTER)
        await lite.open()
        yield lite
        await lite.close()
        return
    from runtime.store.postgres import PostgresDatabase

    other = PostgresDatabase(dsn, MASTER)
    await other.open()
    yield other
    await other.close()
