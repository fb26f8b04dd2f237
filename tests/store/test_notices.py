"""What happened to a session and what it is to be, on each of the stores; and sessions that expire."""

import asyncio

import pytest

from runtime.domain.notices import KEPT_NOTICES, Change, Happening, What
from runtime.domain.sessions import MAIN, Ending, Item, OnConflict, Policies, Session, StopReason, TurnStatus
from runtime.domain.spending import Account, Limits
from runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from runtime.ids import SessionId, TurnId
from runtime.roles.making import unanswered
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from tests.store.conftest import Execute
from tests.store.talking import (
    COMMITTED,
    EVENTS,
    HERE,
    MASTER,
    OTHER,
    OUTPUT,
    TENANT,
    committed,
    enqueued,
    key,
    opened,
    record,
    session,
    talked,
)

HOUR = 3_600_000


async def happened(store: SessionStore, sess: SessionId, after: int = 0) -> list[Happening]:
    notices = await store.notices(TENANT, sess, after, 1000)
    assert [notice.number for notice in notices] == [*range(after + 1, after + 1 + len(notices))]
    return [notice.happening for notice in notices]


async def test_what_happens_to_a_session_is_told_in_order_from_wherever_one_is(store: SessionStore) -> None:
    sess = await session(store)
    running = await opened(store, record(sess))
    waiting = await opened(store, enqueued(record(sess, "turn-2")))
    await store.finish(running, COMMITTED, OUTPUT, EVENTS)
    branch = (await store.context(TENANT, sess, MAIN)).branch
    begun = await store.begin(record(sess, "turn-2", branch.place))
    assert begun is not None
    await store.finish(begun, Ending(TurnStatus.CANCELLED), (), ())
    dropped = await opened(store, record(sess, "turn-3", branch.place))
    gone = await opened(store, enqueued(record(sess, "turn-4")))
    await store.drop(gone, Ending(TurnStatus.FAILED))
    await store.fork(TENANT, sess, MAIN, running.id, "other", None)
    await store.rollback(TENANT, sess, "other", None, None)
    await store.update(TENANT, sess, Change(metadata={"a": "b"}), None)
    added = await store.add(unanswered(TurnId("turn-5"), TENANT, sess, "other", (Item("user", "Hi."),), HERE), None)
    await store.drop_branch(TENANT, sess, "other")
    await store.describe(TENANT, sess, {"a": "c"})
    told = [
        Happening(What.OPENED, MAIN, running.id, TurnStatus.RUNNING),
        Happening(What.OPENED, MAIN, waiting.id, TurnStatus.QUEUED),
        Happening(What.ENDED, MAIN, running.id, TurnStatus.COMMITTED, StopReason.END_TURN),
        Happening(What.BEGUN, MAIN, waiting.id, TurnStatus.RUNNING),
        Happening(What.ENDED, MAIN, waiting.id, TurnStatus.CANCELLED),
        Happening(What.OPENED, MAIN, dropped.id, TurnStatus.RUNNING),
        Happening(What.OPENED, MAIN, gone.id, TurnStatus.QUEUED),
        Happening(What.ENDED, MAIN, gone.id, TurnStatus.FAILED),
        Happening(What.FORKED, "other", running.id),
        Happening(What.ROLLED_BACK, "other", None),
        Happening(What.UPDATED, version=2),
        Happening(What.ENDED, "other", added.id, TurnStatus.COMMITTED, StopReason.END_TURN),
        Happening(What.DROPPED, "other", added.id),
        Happening(What.UPDATED, version=3),
    ]
    for after in range(len(told) + 1):
        assert await happened(store, sess, after) == told[after:]
    assert (await store.get(TENANT, sess))[0].account.notices == len(told)
    assert len(await store.notices(TENANT, sess, 2, 3)) == 3


async def test_what_is_asked_again_under_its_key_happened_once(store: SessionStore) -> None:
    sess = await talked(store, 2)
    before = len(await happened(store, sess))
    for _ in range(2):
        await store.fork(TENANT, sess, MAIN, None, "other", key("fork"))
        await store.rollback(TENANT, sess, "other", None, key("back"))
        await store.update(TENANT, sess, Change(ttl_ms=HOUR), key("update"))
    assert [each.what for each in await happened(store, sess, before)] == [What.FORKED, What.ROLLED_BACK, What.UPDATED]
    assert (await store.get(TENANT, sess))[0].account.version == 2
    with pytest.raises(FailedPrecondition) as refused:
        await store.update(TENANT, sess, Change(ttl_ms=0), key("update", b"two"))
    assert refused.value.field == "idempotency_key"


async def test_of_the_notices_the_newest_are_kept_and_who_was_away_for_longer_is_told(store: SessionStore) -> None:
    sess = await session(store)
    for _ in range(KEPT_NOTICES // 64 + 2):
        await asyncio.gather(*(store.update(TENANT, sess, Change(ttl_ms=HOUR), None) for _ in range(64)))
    last = (await store.get(TENANT, sess))[0].account.notices
    kept = await store.notices(TENANT, sess, last - KEPT_NOTICES, 10_000)
    assert [notice.number for notice in kept] == [*range(last - KEPT_NOTICES + 1, last + 1)]
    with pytest.raises(FailedPrecondition) as away:
        await store.notices(TENANT, sess, 0, 10)
    assert away.value.field == "after"
    with pytest.raises(InvalidArgument) as ahead:
        await store.notices(TENANT, sess, last + 1, 10)
    assert ahead.value.field == "after"


async def test_a_change_changes_what_it_names_and_no_more(store: SessionStore) -> None:
    sess = await session(store)
    policies, limits = Policies(OnConflict.ENQUEUE, True), Limits(turns=9, wall_ms=0)
    await store.update(TENANT, sess, Change(policies=policies, limits=limits), None)
    found, _ = await store.get(TENANT, sess)
    assert (found.policies, found.account.limits, found.metadata) == (policies, limits, {"who": "Ünï"})
    await store.update(TENANT, sess, Change(metadata={}, ttl_ms=HOUR), None)
    found, _ = await store.get(TENANT, sess)
    assert (found.policies, found.account.limits, found.metadata) == (policies, limits, {})
    assert (found.account.version, found.account.ttl_ms) == (3, HOUR)
    assert found.account.expires_in_ms is not None
    assert HOUR - 60_000 < found.account.expires_in_ms <= HOUR
    await store.update(TENANT, sess, Change(ttl_ms=0), None)
    found, _ = await store.get(TENANT, sess)
    assert (found.account.ttl_ms, found.account.expires_in_ms) == (None, None)


async def test_of_two_that_change_the_same_version_one_is_refused(store: SessionStore) -> None:
    sess = await session(store)
    changes = [store.update(TENANT, sess, Change(1, metadata={"n": str(number)}), None) for number in range(4)]
    done = await asyncio.gather(*changes, return_exceptions=True)
    refused = [each for each in done if isinstance(each, FailedPrecondition)]
    assert (len(refused), refused[0].field) == (3, "expected_version")
    assert (await store.get(TENANT, sess))[0].account.version == 2


async def test_a_session_of_somebody_else_is_neither_changed_nor_watched(store: SessionStore) -> None:
    sess = await session(store)
    for ask in (store.update(OTHER, sess, Change(ttl_ms=1), None), store.notices(OTHER, sess, 0, 10)):
        with pytest.raises(NotFound, match="there is no such session"):
            await ask
    assert (await store.get(TENANT, sess))[0].account.version == 1


async def test_a_bell_rings_for_its_own_session(store: SessionStore) -> None:
    one, two = await session(store), await session(store, "sess-2")
    async with asyncio.timeout(20):
        with store.hearing(one) as bell:
            await store.update(TENANT, one, Change(ttl_ms=1), None)
            await bell.wait(60.0)
            await store.update(TENANT, two, Change(ttl_ms=1), None)
            began = asyncio.get_running_loop().time()
            await bell.wait(0.05)
            assert asyncio.get_running_loop().time() - began >= 0.04


async def test_another_gateway_is_woken(server: str, database: str) -> None:
    from runtime.store.notifying import NotifyingBells
    from runtime.store.postgres import PostgresDatabase

    here, there = PostgresDatabase(database, MASTER), PostgresDatabase(database, MASTER)
    await here.open()
    await there.open()
    writes = SqlSessionStore(here, NotifyingBells(database))
    watches = SqlSessionStore(there, NotifyingBells(database))
    sess = await session(writes)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        carrying = [group.create_task(store.tend()) for store in (writes, watches)]
        with watches.hearing(sess) as bell:
            await bell.wait(60.0)  # it listens: what was said before nobody heard here
            await writes.update(TENANT, sess, Change(ttl_ms=1), None)
            await bell.wait(60.0)
        assert len(await watches.notices(TENANT, sess, 0, 10)) == 1
        for task in carrying:
            task.cancel()
    await here.close()
    await there.close()


async def expiring(store: SessionStore, name: str, ttl_ms: int | None = HOUR) -> SessionId:
    made = await store.create(Session(SessionId(name), TENANT, "model", 0, account=Account(ttl_ms=ttl_ms)), None)
    return made.id


async def test_what_has_expired_is_swept_and_nothing_else(store: SessionStore, execute: Execute) -> None:
    """Invariant 14."""
    idle, running, queued, forked, lasting, touched = [
        await expiring(store, f"sess-{name}", None if name == "lasting" else HOUR)
        for name in ("idle", "running", "queued", "forked", "lasting", "touched")
    ]
    await committed(store, record(idle, "t-idle"))
    await opened(store, record(running, "t-running"))
    await opened(store, record(queued, "t-first"))
    await opened(store, enqueued(record(queued, "t-queued")))
    await committed(store, record(forked, "t-parent"))
    fork = await store.fork(TENANT, forked, MAIN, None, "fork", None)
    await opened(store, record(forked, "t-fork", fork.place, branch="fork", context=5))
    assert await store.sweep(100) == ()
    await execute(f"UPDATE accounts SET expires = expires - {2 * HOUR}")
    await store.update(TENANT, touched, Change(metadata={}), None)
    assert await store.sweep(100) == (idle,)
    with pytest.raises(NotFound):
        await store.get(TENANT, idle)
    left = {each.id for each in await store.list(TENANT, None, 100)}
    assert left == {running, queued, forked, lasting, touched}
    assert (await store.context(TENANT, forked, "fork")).tokens == (1, 2, 3, 7, 8), "the live fork stands on its parent"


async def test_a_turn_that_ends_begins_the_life_of_its_session_anew(store: SessionStore, execute: Execute) -> None:
    sess = await expiring(store, "sess-1")
    turn = await opened(store, record(sess))
    await execute(f"UPDATE accounts SET expires = expires - {2 * HOUR}")
    assert await store.sweep(100) == ()
    await store.finish(turn, COMMITTED, OUTPUT, EVENTS)
    assert await store.sweep(100) == ()
    await execute(f"UPDATE accounts SET expires = expires - {2 * HOUR}")
    assert await store.sweep(100) == (sess,)


async def test_a_turn_that_is_opened_while_its_session_is_swept_runs_or_is_refused(
    store: SessionStore, execute: Execute
) -> None:
    """Never is there a turn without its session, nor a sweep of a turn that was acknowledged."""
    names = [await expiring(store, f"sess-{number}", 1) for number in range(12)]
    await execute(f"UPDATE accounts SET expires = expires - {HOUR}")
    turns = [store.open(record(name, f"turn-{name}"), None) for name in names]
    swept, *found = await asyncio.gather(store.sweep(100), *turns, return_exceptions=True)
    assert isinstance(swept, tuple)
    for name, turn in zip(names, found, strict=True):
        assert isinstance(turn, NotFound) == (name in swept)
        if name not in swept:
            assert (await store.get(TENANT, name))[1][0].live == f"turn-{name}"
