"""What responses and conversations ask of the stores: items without an answer, pages, what is seen and what is not."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.domain.sequence import Sampling
from runtime.domain.sessions import MAIN, Asked, Ending, Item, Key, Place, Session, StopReason, TurnRecord, TurnStatus
from runtime.domain.tools import Tool, Toolbox, ToolCall, ToolResult
from runtime.errors import BatonError, FailedPrecondition, Internal, NotFound
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store.packing import pack
from runtime.store.schema import MIGRATIONS
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.conftest import Rows
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


def said(sess: SessionId, name: str, *texts: str, branch: str = MAIN) -> TurnRecord:
    """A turn that only says something."""
    asked = Asked(tuple(Item("user", text) for text in texts), Sampling(1), False, 0.0)
    ended = Ending(TurnStatus.COMMITTED, StopReason.END_TURN)
    return TurnRecord(TurnId(name), sess, TENANT, branch, "", TurnStatus.COMMITTED, 0, HERE, asked, ending=ended)


async def test_what_is_added_waits_for_the_next_turn_to_render_it(store: SessionStore) -> None:
    sess = await session(store)
    await store.add(said(sess, "turn-a", "One.", "Two."), None)
    context = await store.context(TENANT, sess, MAIN)
    assert (context.tokens, [item.content for item in context.unrendered]) == ((), ["One.", "Two."])
    await committed(store, record(sess, base=context.branch.place))
    await store.add(said(sess, "turn-b", "Three."), None)
    context = await store.context(TENANT, sess, MAIN)
    assert (context.tokens, [item.content for item in context.unrendered]) == ((1, 2, 3, 7, 8), ["Three."])
    assert (context.branch.head, context.branch.tokens, context.boot) == ("turn-b", 5, "boot-a")
    await committed(store, record(sess, "turn-2", context.branch.place, prompt=(4,), context=5))
    context = await store.context(TENANT, sess, MAIN)
    assert (context.tokens, context.unrendered) == ((1, 2, 3, 7, 8, 4, 7, 8), ())
    fork = await store.fork(TENANT, sess, MAIN, TurnId("turn-b"), "other", None)
    assert (await store.context(TENANT, sess, fork.name)).tokens == (1, 2, 3, 7, 8)
    assert len((await store.context(TENANT, sess, fork.name)).unrendered) == 1


async def test_adding_is_once_under_a_key_and_not_beside_a_turn(store: SessionStore) -> None:
    sess = await session(store)
    first = await store.add(said(sess, "turn-a", "One."), key())
    assert await store.add(said(sess, "turn-b", "One."), key()) == first
    with pytest.raises(FailedPrecondition) as another:
        await store.add(said(sess, "turn-c", "Two."), key(request=b"two"))
    assert another.value.field == "idempotency_key"
    running = await opened(store, record(sess, base=Place(0, 1)))
    with pytest.raises(FailedPrecondition) as busy:
        await store.add(said(sess, "turn-d", "Three."), None)
    assert busy.value.field == "on_conflict"
    await store.finish(running, replace(_ended(), status=TurnStatus.COMMITTED), OUTPUT, EVENTS)
    # What was prepared before something was added is prepared anew.
    await store.add(said(sess, "turn-e", "Four."), None)
    assert await store.open(record(sess, "turn-2", Place(0, 2), context=5), None) is None


async def test_other_instructions_have_all_that_was_said_rendered_anew(store: SessionStore) -> None:
    sess = await session(store)
    await committed(store, record(sess, instructions="Be brief."))
    same = await store.context(TENANT, sess, MAIN, "Be brief.")
    assert (same.instructions, same.preamble, same.items) == ("Be brief.", (Item("system", "Be brief."),), ())
    for other in (None, "Be long."):
        context = await store.context(TENANT, sess, MAIN, other)
        assert context.anew(other)
        assert [item.role for item in context.items] == ["user", "assistant"]
    await committed(store, record(sess, "turn-2", Place(0, 1), prompt=(5, 6), context=0))
    context = await store.context(TENANT, sess, MAIN)
    assert (context.tokens, context.branch.tokens, context.items, context.preamble) == ((5, 6, 7, 8), 4, (), ())
    await committed(store, record(sess, "turn-3", Place(0, 2), prompt=(9,), context=4))
    assert (await store.context(TENANT, sess, MAIN)).tokens == (5, 6, 7, 8, 9, 7, 8)


async def test_what_was_said_comes_in_pages_from_either_end(store: SessionStore) -> None:
    sess = await talked(store, 4)
    await store.fork(TENANT, sess, MAIN, TurnId("turn-1"), "other", None)
    everything = {branch: await store.items(TENANT, sess, branch, 0, 99) for branch in (MAIN, "other")}
    assert [len(each) for each in everything.values()] == [8, 4]
    for branch, items in everything.items():
        for newest_first in (False, True):
            seen, after = list[tuple[TurnId, Item]](), None
            while page := await store.page(TENANT, sess, branch, after, 3, newest_first=newest_first):
                seen += [(each.turn, each.item) for each in page]
                after = (page[-1].turn, page[-1].number)
            expecting = [(turn, item) for _, turn, item in items]
            assert seen == (expecting[::-1] if newest_first else expecting)
    one = (await store.page(TENANT, sess, MAIN, None, 1, newest_first=True))[0]
    assert await store.item(TENANT, sess, MAIN, one.turn, one.number) == one
    for lost in (
        store.item(TENANT, sess, "other", one.turn, one.number),
        store.item(TENANT, sess, MAIN, one.turn, 9),
        store.page(TENANT, sess, "other", (one.turn, one.number), 3, newest_first=False),
    ):
        with pytest.raises(NotFound) as unknown:
            await lost
        assert unknown.value.field == "item"


async def test_a_turn_is_found_by_its_id_where_it_is_a_response_of_this_tenant(store: SessionStore) -> None:
    sess = await session(store)
    turn = await committed(store, record(sess, memo=b"mine", instructions="Be brief."))
    await store.add(said(sess, "turn-a", "One."), None)
    found = await store.turn(TENANT, turn.id)
    assert (found.asked.memo, found.asked.instructions, found.session) == (b"mine", "Be brief.", sess)
    told = set()
    for lost in (store.turn(OTHER, turn.id), store.turn(TENANT, TurnId("turn-a")), store.turn(TENANT, TurnId("none"))):
        with pytest.raises(NotFound) as unknown:
            await lost
        told.add(unknown.value.message)
    assert len(told) == 1


async def test_a_hidden_session_is_not_listed_and_goes_with_the_last_of_its_responses(
    store: SessionStore, rows: Rows
) -> None:
    await session(store, "sess-seen")
    hidden = (await store.create(Session(SessionId("sess-hid"), TENANT, "model", 0, hidden=True), None)).id
    assert [each.id for each in await store.list(TENANT, None, 9)] == ["sess-seen"]
    assert (await store.get(TENANT, hidden))[0].hidden
    one = await committed(store, record(hidden))
    two = await committed(store, record(hidden, "turn-2", Place(0, 1), context=5))
    await store.forget(TENANT, one.id)
    with pytest.raises(NotFound):
        await store.turn(TENANT, one.id)
    with pytest.raises(NotFound):
        await store.forget(OTHER, two.id)
    assert len((await store.context(TENANT, hidden, MAIN)).tokens) == 10
    await store.forget(TENANT, two.id)
    with pytest.raises(NotFound):
        await store.get(TENANT, hidden)
    assert {table: count for table, count in (await rows()).items() if count} == {
        "sessions": 1,
        "lines": 1,
        "branches": 1,
        "session_keys": 1,
        "accounts": 1,
    }


async def test_a_session_is_made_with_its_first_turn_or_not_at_all(store: SessionStore, rows: Rows) -> None:
    alone = Session(SessionId("sess-hid"), TENANT, "model", 0, hidden=True)
    turn = record(alone.id)
    stale = replace(turn, asked=replace(turn.asked, expected_head=TurnId("turn-0"), head_is_expected=True))
    with pytest.raises(FailedPrecondition):
        await store.open_alone(alone, stale, key())
    assert set((await rows()).values()) == {0}
    opened, fresh = await store.open_alone(alone, turn, key())
    assert (fresh, opened.status, opened.epoch) == (True, TurnStatus.RUNNING, 1)
    again = replace(alone, id=SessionId("sess-2"))
    known, fresh = await store.open_alone(again, record(again.id, "turn-2"), key())
    assert (fresh, known.id, known.session) == (False, turn.id, alone.id)
    with pytest.raises(FailedPrecondition) as another:
        await store.open_alone(again, record(again.id, "turn-3"), key(request=b"two"))
    assert another.value.field == "idempotency_key"
    assert (await rows())["sessions"] == 1


async def test_a_session_is_made_with_what_is_said_in_it_or_not_at_all(store: SessionStore, rows: Rows) -> None:
    talk = Session(SessionId("sess-1"), TENANT, "model", 0)
    with pytest.raises(NotFound):
        await store.create(talk, key(), said(talk.id, "turn-a", "One.", branch="none"))
    assert set((await rows()).values()) == {0}
    made = await store.create(talk, key(), said(talk.id, "turn-a", "One."))
    again = replace(talk, id=SessionId("sess-2"))
    assert (await store.create(again, key(), said(again.id, "turn-b", "One."))).id == made.id == talk.id
    assert [item.content for *_, item in await store.items(TENANT, talk.id, MAIN, 0, 9)] == ["One."]
    assert ((await rows())["sessions"], (await rows())["turns"]) == (1, 1)


async def test_nothing_is_added_while_calls_wait(store: SessionStore) -> None:
    sess = await session(store)
    call = ToolCall("call-0", "weather", "{}")
    ending = replace(COMMITTED, stop=StopReason.TOOL_CALLS, calls=(call,))
    await committed(store, record(sess, toolbox=Toolbox((Tool("weather"),))), ending)
    with pytest.raises(FailedPrecondition, match="called tools") as refused:
        await store.add(said(sess, "turn-a", "One."), None)
    assert refused.value.field == "items"
    await store.submit(TENANT, sess, MAIN, (ToolResult(call.id, "Sunny."),), None)
    with pytest.raises(FailedPrecondition, match="called tools"):
        await store.add(said(sess, "turn-a", "One."), None)
    assert len(await store.items(TENANT, sess, MAIN, 0, 9)) == 2


async def test_a_try_that_failed_is_no_response_once_there_is_another(store: SessionStore, rows: Rows) -> None:
    """So deleting the one that succeeded leaves nothing."""
    alone, tried = Session(SessionId("sess-hid"), TENANT, "model", 0, hidden=True), Key("try", b"one", window_s=60.0)
    failed, _ = await store.open_alone(alone, record(alone.id), tried)
    await store.finish(failed, _ended(Internal("broken")), (), ())
    assert (await store.turn(TENANT, failed.id)).ending is not None
    again, fresh = await store.open_alone(replace(alone, id=SessionId("sess-2")), record(alone.id, "turn-2"), tried)
    assert (fresh, again.session) == (True, alone.id)
    with pytest.raises(NotFound):
        await store.turn(TENANT, failed.id)
    await store.finish(again, COMMITTED, OUTPUT, EVENTS)
    await store.forget(TENANT, again.id)
    assert set((await rows()).values()) == {0}


async def test_what_is_forgotten_is_gone_unless_another_response_stands_on_it(store: SessionStore, rows: Rows) -> None:
    alone = (await store.create(Session(SessionId("sess-hid"), TENANT, "model", 0, hidden=True), None)).id
    one = await committed(store, record(alone, "turn-1"))
    two = await committed(store, record(alone, "turn-2", Place(0, 1), prompt=(22,), context=5))
    fork = await store.fork(TENANT, alone, MAIN, one.id, "other", key())
    aside = {"branch": "other", "context": 5}
    three = await committed(store, record(alone, "turn-3", fork.place, prompt=(33,), **aside))  # type: ignore[arg-type]
    four = await committed(store, record(alone, "turn-4", Place(1, 2), prompt=(44,), branch="other", context=8))
    failed = await opened(store, record(alone, "turn-5", Place(1, 3), branch="other", context=11))
    await store.finish(failed, _ended(Internal("broken")), (), ())

    async def heads() -> dict[str, tuple[TurnId | None, int, Place]]:
        _, branches = await store.get(TENANT, alone)
        return {each.name: (each.head, each.tokens, each.place) for each in branches}

    for forgotten in (failed.id, four.id, two.id):
        await store.forget(TENANT, forgotten)
    assert await heads() == {"main": (one.id, 5, Place(0, 1)), "other": (three.id, 8, Place(1, 2))}
    assert {name: count for name, count in (await rows()).items() if name in ("turns", "segments", "items")} == {
        "turns": 2,
        "segments": 2,
        "items": 4,
    }
    assert (await store.context(TENANT, alone, "other")).tokens == (1, 2, 3, 7, 8, 33, 7, 8)
    six = await committed(store, record(alone, "turn-6", Place(0, 1), prompt=(66,), context=5))
    await store.forget(TENANT, one.id)  # two others stand on it
    await store.forget(TENANT, three.id)
    assert await heads() == {"main": (six.id, 8, Place(0, 2))}
    assert (await store.context(TENANT, alone, MAIN)).tokens == (1, 2, 3, 7, 8, 66, 7, 8)
    assert ((await rows())["turns"], (await rows())["lines"]) == (2, 1)
    # The fork's key is forgotten with it.
    assert (await store.fork(TENANT, alone, MAIN, six.id, "third", key())).name == "third"
    await store.forget(TENANT, six.id)
    assert set((await rows()).values()) == {0}


async def test_what_runs_or_waits_is_not_pruned(store: SessionStore) -> None:
    alone = (await store.create(Session(SessionId("sess-hid"), TENANT, "model", 0, hidden=True), None)).id
    one = await committed(store, record(alone, "turn-1"))
    two = await committed(store, record(alone, "turn-2", Place(0, 1), context=5))
    await opened(store, record(alone, "turn-3", Place(0, 2), context=10))
    waits = await store.open(enqueued(record(alone, "turn-4")), None)
    assert waits is not None
    for forgotten in (one.id, two.id, TurnId("turn-3")):
        await store.forget(TENANT, forgotten)
    _, (branch,) = await store.get(TENANT, alone)
    assert (branch.head, branch.live, branch.place) == (two.id, "turn-3", Place(0, 2))


async def test_a_response_of_a_session_that_is_seen_leaves_it_there(store: SessionStore) -> None:
    sess = await session(store)
    turn = await committed(store, record(sess))
    await store.forget(TENANT, turn.id)
    assert len(await store.items(TENANT, sess, MAIN, 0, 9)) == 2


async def test_metadata_is_replaced_and_nothing_else(store: SessionStore) -> None:
    sess = await session(store)
    before, _ = await store.get(TENANT, sess)
    after = await store.describe(TENANT, sess, {"new": "x"})
    assert after == replace(before, metadata={"new": "x"}, account=after.account)
    assert after.account == replace(before.account, version=2, notices=1)
    with pytest.raises(NotFound):
        await store.describe(OTHER, sess, {})


async def test_another_try_of_a_turn_that_failed_is_a_turn_of_its_own(store: SessionStore) -> None:
    sess = await session(store)
    tried, named = Key("try", b"one", window_s=60.0), key("named")
    for number, under in enumerate((tried, named)):
        turn = await opened(store, record(sess, f"turn-{number}"), under)
        await store.finish(turn, _ended(Internal("broken")), (), ())
    assert await store.known(TENANT, sess, tried) is None
    again = await opened(store, record(sess, "turn-9"), tried)
    assert (await store.known(TENANT, sess, tried), again.status) == (again, TurnStatus.RUNNING)
    known = await store.known(TENANT, sess, named)
    assert known is not None
    assert known.id == "turn-1", "a key of the client's own is one request, however it ended"


async def test_a_store_of_an_older_baton_is_brought_up(tmp_path: Path) -> None:
    file = tmp_path / "sessions.sqlite"
    with closing(sqlite3.connect(file)) as older:
        for statements in MIGRATIONS[:2]:
            for statement in statements:
                assert isinstance(statement, str)
                older.execute(statement.replace("BYTEA", "BLOB"))
        older.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        older.execute("INSERT INTO schema_version VALUES (2)")
        row = ("sess-old", TENANT, "model", 1, 1, 0, pack({"metadata": {}, "vocabulary": ""}))
        older.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        older.commit()
    database = SqliteDatabase(file, MASTER)
    await database.open()
    (found,) = await SqlSessionStore(database).list(TENANT, None, 9)
    assert (found.id, found.hidden) == ("sess-old", False)
    await database.close()


async def test_all_of_it_goes_along_to_another_store(store: SessionStore, tmp_path: Path) -> None:
    sess = await session(store)
    await store.add(said(sess, "turn-a", "One."), None)
    await committed(store, record(sess, base=Place(0, 1), items=(), instructions="Be brief.", memo=b"mine"))
    await committed(store, record(sess, "turn-2", Place(0, 2), prompt=(5, 6), context=0))
    await store.add(said(sess, "turn-b", "Two."), None)
    database = SqliteDatabase(tmp_path / "elsewhere.sqlite", MASTER)
    await database.open()
    elsewhere = SqlSessionStore(database)
    await elsewhere.take_in(TENANT, await store.read_out(TENANT, sess), None)
    context = await store.context(TENANT, sess, MAIN)
    there = await elsewhere.context(TENANT, sess, MAIN)
    assert replace(there, session=replace(there.session, account=context.session.account)) == context
    assert (context.tokens, [item.content for item in context.unrendered]) == ((5, 6, 7, 8), ["Two."])
    assert (await elsewhere.turn(TENANT, TurnId("turn-1"))).asked.memo == b"mine"
    with pytest.raises(NotFound):
        await elsewhere.turn(TENANT, TurnId("turn-b"))
    await database.close()


def _ended(error: BatonError | None = None) -> Ending:
    return Ending(TurnStatus.FAILED, StopReason.END_TURN, error, kept=2)
