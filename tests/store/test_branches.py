"""A session's tree of turns, on each of the stores: forks and rollbacks, and a history that is what was committed."""

import pytest

from runtime.domain.sessions import (
    MAIN,
    Ending,
    TurnStatus,
)
from runtime.errors import DataCorrupt, FailedPrecondition, NotFound
from runtime.ids import TurnId
from runtime.session_store import SessionStore
from tests.store.conftest import Execute, Rows
from tests.store.talking import (
    EVENTS,
    TENANT,
    committed,
    key,
    opened,
    record,
    talked,
)

FORKED = {"lines": 1, "branches": 1, "notices": 1}


def said(*numbers: int) -> tuple[int, ...]:
    return tuple(token for number in numbers for token in (100 + number, 7, 8))


async def test_a_fork_goes_its_own_way_and_leaves_its_parent_as_it_was(store: SessionStore) -> None:
    """Invariant 10."""
    sess = await talked(store, 4)
    fork = await store.fork(TENANT, sess, MAIN, TurnId("turn-1"), "other", None)
    assert (fork.head, fork.tokens, fork.place.depth) == ("turn-1", 6, 2)
    turn = record(sess, "turn-9", fork.place, prompt=(109,), branch="other", context=6)
    await committed(store, turn)
    assert (await store.context(TENANT, sess, "other")).tokens == said(0, 1, 9)
    assert (await store.context(TENANT, sess, MAIN)).tokens == said(0, 1, 2, 3)
    assert [turn for _, turn, _ in await store.items(TENANT, sess, "other", 4, 10)] == ["turn-9"] * 2
    again = await store.fork(TENANT, sess, "other", None, "third", None)
    assert (await store.context(TENANT, sess, again.name)).tokens == said(0, 1, 9)
    with pytest.raises(NotFound):
        await store.fork(TENANT, sess, "other", TurnId("turn-3"), "fourth", None)
    with pytest.raises(FailedPrecondition) as taken:
        await store.fork(TENANT, sess, MAIN, None, "third", None)
    assert taken.value.field == "name"


async def test_a_rollback_moves_the_head_and_what_came_after_is_still_readable(store: SessionStore) -> None:
    sess = await talked(store, 4)
    before = await store.fork(TENANT, sess, MAIN, None, "before", None)
    back = await store.rollback(TENANT, sess, MAIN, TurnId("turn-1"), None)
    assert (back.head, back.tokens) == ("turn-1", 6)
    await committed(store, record(sess, "turn-8", back.place, prompt=(108,), context=6))
    assert (await store.context(TENANT, sess, MAIN)).tokens == said(0, 1, 8)
    back = await store.rollback(TENANT, sess, MAIN, TurnId("turn-0"), None)
    await committed(store, record(sess, "turn-7", back.place, prompt=(107,), context=3))
    assert (await store.context(TENANT, sess, MAIN)).tokens == said(0, 7)
    assert (await store.context(TENANT, sess, before.name)).tokens == said(0, 1, 2, 3)
    assert (await store.progress(TENANT, sess, TurnId("turn-8"), 0)).events == EVENTS
    empty = await store.rollback(TENANT, sess, MAIN, None, None)
    assert (empty.head, empty.tokens, empty.place.depth) == (None, 0, 0)
    await committed(store, record(sess, "turn-6", empty.place, prompt=(106,)))
    assert (await store.context(TENANT, sess, MAIN)).tokens == said(6)
    with pytest.raises(NotFound):
        await store.rollback(TENANT, sess, MAIN, TurnId("turn-7"), None)


async def test_a_rollback_waits_for_nobody_and_fences_what_was_prepared_before(store: SessionStore) -> None:
    sess = await talked(store, 2)
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    running = await opened(store, record(sess, "turn-2", place))
    with pytest.raises(FailedPrecondition, match="busy"):
        await store.rollback(TENANT, sess, MAIN, None, None)
    await store.finish(running, Ending(TurnStatus.CANCELLED), (), ())
    await store.rollback(TENANT, sess, MAIN, TurnId("turn-0"), None)
    assert await store.open(record(sess, "turn-3", place), None) is None


async def test_forks_and_rollbacks_under_a_key_happen_once(store: SessionStore) -> None:
    sess = await talked(store, 3)
    forks = [await store.fork(TENANT, sess, MAIN, None, "other", key()) for _ in range(2)]
    assert forks[0] == forks[1]
    backs = [await store.rollback(TENANT, sess, MAIN, TurnId("turn-0"), key("back")) for _ in range(2)]
    assert backs[0] == backs[1]


async def test_a_fork_adds_the_same_rows_whatever_the_history(store: SessionStore, rows: Rows) -> None:
    """Invariant 10, counted."""
    sess = await talked(store, 3)
    before = await rows()
    await store.fork(TENANT, sess, MAIN, None, "one", None)
    one = await rows()
    for number in range(20):
        base = (await store.context(TENANT, sess, "one")).branch
        turn = record(sess, f"more-{number}", base.place, branch="one", context=base.tokens)
        await committed(store, turn)
    more = await rows()
    await store.fork(TENANT, sess, "one", None, "two", None)
    assert {table: count - before[table] for table, count in one.items() if count != before[table]} == FORKED
    assert {table: count - more[table] for table, count in (await rows()).items() if count != more[table]} == FORKED


async def test_tokens_that_were_changed_in_the_store_are_refused(store: SessionStore, execute: Execute) -> None:
    """Invariant 5."""
    sess = await talked(store, 3)
    await execute(
        "UPDATE segments SET tokens = (SELECT tokens FROM segments WHERE turn = 'turn-0') WHERE turn = 'turn-1'"
    )
    with pytest.raises(DataCorrupt, match="turn-1"):
        await store.context(TENANT, sess, MAIN)


async def test_a_turn_that_is_missing_in_the_store_is_noticed(store: SessionStore, execute: Execute) -> None:
    sess = await talked(store, 3)
    await execute("DELETE FROM segments WHERE turn = 'turn-2'")
    with pytest.raises(DataCorrupt):
        await store.context(TENANT, sess, MAIN)
