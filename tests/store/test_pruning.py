"""Forks and their ends: each is as cheap as the last, and what no branch reaches any more is not there."""

import random
from dataclasses import replace

import pytest

from runtime.domain.sessions import MAIN, Ending, OnConflict, TurnStatus
from runtime.errors import FailedPrecondition, NotFound
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store.transaction import Database, Transaction
from tests.scale import scaled
from tests.store.conftest import Rows
from tests.store.talking import TENANT, committed, enqueued, key, opened, record, session, talked

FORKED = {"lines": 1, "branches": 1}


async def said_on(store: SessionStore, sess: SessionId, branch: str, turn: str) -> None:
    at = (await store.context(TENANT, sess, branch)).branch
    await committed(store, record(sess, turn, at.place, branch=branch, context=at.tokens))


async def audit(tx: Transaction) -> None:
    """Every row is reached by a branch, or by what a rollback left; and everything that is reached is there."""
    for what, sql in {
        "a turn without its branch": "SELECT id FROM turns t WHERE NOT EXISTS (SELECT 1 FROM segments s WHERE"
        " s.turn = t.id) AND NOT EXISTS (SELECT 1 FROM branches b WHERE b.session = t.session AND b.name = t.branch)",
        "a segment without its turn": "SELECT turn FROM segments WHERE turn NOT IN (SELECT id FROM turns)",
        "an item without its turn": "SELECT turn FROM items WHERE turn NOT IN (SELECT id FROM turns)",
        "a segment without its line": "SELECT turn FROM segments s WHERE NOT EXISTS (SELECT 1 FROM lines l WHERE"
        " l.session = s.session AND l.line = s.line)",
        "a line without its parent": "SELECT line FROM lines l WHERE parent IS NOT NULL AND NOT EXISTS (SELECT 1 FROM"
        " lines p WHERE p.session = l.session AND p.line = l.parent)",
        "a line of nobody": "SELECT line FROM lines l WHERE line > 0 AND NOT EXISTS (SELECT 1 FROM segments s WHERE"
        " s.session = l.session AND s.line = l.line) AND NOT EXISTS (SELECT 1 FROM branches b WHERE b.session ="
        " l.session AND b.line = l.line) AND NOT EXISTS (SELECT 1 FROM lines c WHERE c.session = l.session AND"
        " c.parent = l.line)",
    }.items():
        assert not await tx.rows(sql), what


@pytest.mark.timeout(600)
async def test_a_thousand_forks_of_a_long_parent_cost_the_same_rows_and_leave_none(
    store: SessionStore, kept: Database, rows: Rows
) -> None:
    """Invariant 10, with a parent of 100,000 tokens."""
    forks, chance = scaled(20, 1000), random.Random(5)
    sess = await session(store)
    for number in range(10):
        at = (await store.context(TENANT, sess, MAIN)).branch
        prompt = tuple(chance.randrange(50_000) for _ in range(10_000))
        await committed(store, record(sess, f"turn-{number}", at.place, prompt=prompt, context=at.tokens))
    parent = await store.context(TENANT, sess, MAIN)
    assert len(parent.tokens) >= 100_000
    before = await rows()
    alive = [MAIN]
    for number in range(forks):
        had = await rows()
        turn = TurnId(f"turn-{chance.randrange(10)}") if chance.random() < 0.5 else None
        source = chance.choice(alive) if turn is None else MAIN
        await store.fork(TENANT, sess, source, turn, f"fork-{number}", None)
        now = await rows()
        # Of the notices the oldest go meanwhile.
        grown = {table: now[table] - had[table] for table in now if now[table] != had[table]}
        assert {table: more for table, more in grown.items() if table != "notices"} == FORKED
        alive.append(f"fork-{number}")
        if chance.random() < 0.2:
            await said_on(store, sess, f"fork-{number}", f"fork-turn-{number}")
    while alive != [MAIN]:
        gone = alive.pop(chance.randrange(1, len(alive)))
        await store.drop_branch(TENANT, sess, gone)
        if len(alive) % (forks // 10) == 0:
            await kept.read(audit)
            for branch in chance.sample(alive, min(3, len(alive))):
                await store.context(TENANT, sess, branch)
    await kept.read(audit)
    # What happened is told to those who watch, also when nothing is left of it.
    assert await rows() | {"notices": 0} == before | {"notices": 0}
    left = await store.context(TENANT, sess, MAIN)
    assert (left.branch, left.tokens, left.boot) == (parent.branch, parent.tokens, parent.boot)


async def test_what_another_branch_reaches_stays_and_what_a_rollback_left_goes_with_its_branch(
    store: SessionStore, kept: Database, rows: Rows
) -> None:
    sess = await talked(store, 2)
    before = await rows()
    await store.fork(TENANT, sess, MAIN, None, "one", key("fork"))
    await said_on(store, sess, "one", "turn-a")
    await store.fork(TENANT, sess, "one", None, "two", None)
    await said_on(store, sess, "one", "turn-b")
    await store.rollback(TENANT, sess, "one", TurnId("turn-1"), None)
    await said_on(store, sess, "one", "turn-c")
    two = await store.context(TENANT, sess, "two")
    await store.drop_branch(TENANT, sess, "one")
    await kept.read(audit)
    left = await store.context(TENANT, sess, "two")
    assert left == replace(two, session=left.session)
    for gone in ("turn-b", "turn-c"):
        with pytest.raises(NotFound):
            await store.progress(TENANT, sess, TurnId(gone), 0)
    assert (await store.progress(TENANT, sess, TurnId("turn-a"), 0)).turn.status is TurnStatus.COMMITTED
    # Its key stands for nothing any more.
    await store.fork(TENANT, sess, MAIN, None, "one", key("fork"))
    await store.drop_branch(TENANT, sess, "one")
    await store.drop_branch(TENANT, sess, "two")
    # What happened is told to those who watch, also when nothing is left of it.
    assert await rows() | {"notices": 0} == before | {"notices": 0}


async def test_main_and_a_branch_that_is_busy_are_not_dropped(store: SessionStore) -> None:
    sess = await talked(store, 1)
    made = await store.fork(TENANT, sess, MAIN, None, "one", None)
    running = await opened(store, record(sess, "turn-r", made.place, branch="one", context=made.tokens))
    found = await store.open(enqueued(record(sess, "turn-q", None, branch="one"), OnConflict.ENQUEUE), None)
    assert found is not None
    for name in (MAIN, "one"):
        with pytest.raises(FailedPrecondition) as refused:
            await store.drop_branch(TENANT, sess, name)
        assert refused.value.field == "branch"
    await store.finish(running, Ending(TurnStatus.CANCELLED), (), ())
    with pytest.raises(FailedPrecondition):
        await store.drop_branch(TENANT, sess, "one")
    await store.drop(found[0], Ending(TurnStatus.CANCELLED))
    await store.drop_branch(TENANT, sess, "one")
    with pytest.raises(NotFound):
        await store.drop_branch(TENANT, sess, "one")
