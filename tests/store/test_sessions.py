"""What every session store does: each test runs on each of them."""

import asyncio
from dataclasses import replace

import pytest

from runtime.domain.sessions import (
    MAIN,
    MAX_QUEUED,
    Ending,
    Halt,
    Item,
    OnConflict,
    Place,
    Session,
    StopReason,
    TurnEvent,
    TurnStatus,
)
from runtime.errors import FailedPrecondition, NotFound, ResourceExhausted, StaleAttempt, Unavailable
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from tests.store.conftest import Execute
from tests.store.talking import (
    COMMITTED,
    EVENTS,
    HERE,
    OTHER,
    OUTPUT,
    START,
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


async def test_a_session_is_found_again_with_its_main_branch(store: SessionStore) -> None:
    made = await session(store)
    found, branches = await store.get(TENANT, made)
    assert (found.model, found.metadata, found.rerender) == ("model", {"who": "Ünï"}, False)
    assert [(branch.name, branch.head, branch.place) for branch in branches] == [(MAIN, None, START)]


async def test_a_session_of_somebody_else_is_not_found_in_the_same_words_as_none(store: SessionStore) -> None:
    made = await session(store)
    running = await opened(store, record(made))
    for ask in (
        store.get(OTHER, made),
        store.context(OTHER, made, MAIN),
        store.progress(OTHER, made, running.id, 0),
        store.halt(OTHER, made, running.id, Halt.DISCARD),
        store.fork(OTHER, made, MAIN, None, "fork", None),
        store.rollback(OTHER, made, MAIN, None, None),
        store.items(OTHER, made, MAIN, 0, 10),
        store.delete(OTHER, made),
        store.known(OTHER, made, key()),
        store.open(replace(record(made, "turn-2"), tenant=OTHER), None),
        store.get(TENANT, SessionId("sess-none")),
    ):
        with pytest.raises(NotFound, match="there is no such session"):
            await ask


async def test_sessions_are_listed_newest_first_page_by_page(store: SessionStore) -> None:
    made = [await session(store, f"sess-{number}") for number in range(5)]
    first = await store.list(TENANT, None, 3)
    rest = await store.list(TENANT, first[-1].id, 3)
    assert [each.id for each in (*first, *rest)] == sorted(made, reverse=True)
    assert await store.list(OTHER, None, 3) == ()


async def test_creating_under_a_key_makes_one_session(store: SessionStore) -> None:
    one = Session(SessionId("sess-1"), TENANT, "model", 0)
    made = await asyncio.gather(*(store.create(replace(one, id=SessionId(f"sess-{n}")), key()) for n in range(5)))
    assert len({each.id for each in made}) == 1
    with pytest.raises(FailedPrecondition) as refused:
        await store.create(one, key(request=b"two"))
    assert refused.value.field == "idempotency_key"
    assert len(await store.list(TENANT, None, 10)) == 1


async def test_a_commit_is_whole(store: SessionStore) -> None:
    """Invariant 3."""
    sess = await session(store)
    turn = await committed(store, record(sess))
    context = await store.context(TENANT, sess, MAIN)
    assert context.tokens == (1, 2, 3, 7, 8)
    assert (context.branch.head, context.branch.tokens, context.branch.live) == (turn.id, 5, None)
    assert context.boot == COMMITTED.boot
    items = await store.items(TENANT, sess, MAIN, 0, 10)
    assert items == ((1, turn.id, Item("user", "Hello.")), (2, turn.id, Item("assistant", "seven eight")))
    progress = await store.progress(TENANT, sess, turn.id, 0)
    assert (progress.turn.ending, progress.turn.status, progress.events) == (COMMITTED, TurnStatus.COMMITTED, EVENTS)
    assert progress.turn.asked == turn.asked


@pytest.mark.parametrize("status", [TurnStatus.CANCELLED, TurnStatus.FAILED])
async def test_a_turn_that_did_not_commit_leaves_the_branch_as_it_was(store: SessionStore, status: TurnStatus) -> None:
    sess = await session(store)
    error = Unavailable("nobody serves", field="model") if status is TurnStatus.FAILED else None
    turn = await committed(store, record(sess), Ending(status, error=error))
    context = await store.context(TENANT, sess, MAIN)
    assert (context.tokens, context.branch.head, context.branch.live) == ((), None, None)
    assert await store.items(TENANT, sess, MAIN, 0, 10) == ()
    told = (await store.progress(TENANT, sess, turn.id, 1)).turn.ending
    assert told is not None
    assert (told.error and told.error.message) == (error and error.message)
    assert (await store.progress(TENANT, sess, turn.id, 1)).events == EVENTS[1:]


async def test_a_lost_acknowledgement_is_made_good_by_asking_again(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, record(sess))
    for _ in range(2):
        await store.append(turn, EVENTS[0])
    for _ in range(2):
        await store.finish(turn, COMMITTED, OUTPUT, EVENTS)
    assert (await store.context(TENANT, sess, MAIN)).tokens == (1, 2, 3, 7, 8)
    with pytest.raises(StaleAttempt):
        await store.finish(turn, replace(COMMITTED, kept=1), OUTPUT, EVENTS)
    with pytest.raises(StaleAttempt):
        await store.append(turn, EVENTS[0])


async def test_events_are_read_from_where_the_reader_is(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, record(sess))
    for event in EVENTS:
        await store.append(turn, event)
    for after in range(3):
        assert (await store.progress(TENANT, sess, turn.id, after)).events == EVENTS[after:]


async def test_one_key_is_one_turn(store: SessionStore) -> None:
    """Invariant 4."""
    sess = await session(store)
    found = await asyncio.gather(*(store.open(enqueued(record(sess, f"turn-{number}")), key()) for number in range(8)))
    assert [each[1] for each in found if each is not None].count(True) == 1
    assert len({each[0].id for each in found if each is not None}) == 1
    with pytest.raises(FailedPrecondition) as refused:
        await store.open(record(sess, "turn-9"), key(request=b"two"))
    assert refused.value.field == "idempotency_key"
    with pytest.raises(FailedPrecondition):
        await store.known(TENANT, sess, key(request=b"two"))
    known = await store.known(TENANT, sess, key())
    assert known is not None
    assert known.id == found[0][0].id if found[0] else None
    assert await store.known(TENANT, sess, key("another")) is None


async def test_at_most_one_turn_of_a_branch_runs(store: SessionStore) -> None:
    """Invariant 2."""
    sess = await session(store)
    first = await opened(store, record(sess))
    with pytest.raises(FailedPrecondition, match="busy") as refused:
        await store.open(record(sess, "turn-2"), None)
    assert refused.value.field == "on_conflict"
    waiting = [await opened(store, enqueued(record(sess, f"turn-{n}"))) for n in (2, 3)]
    assert [turn.status for turn in waiting] == [TurnStatus.QUEUED] * 2
    assert await store.waiting(sess, MAIN) is None
    await store.finish(first, COMMITTED, OUTPUT, EVENTS)
    following = await store.waiting(sess, MAIN)
    assert following is not None
    assert following.id == "turn-2"
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    assert await store.begin(replace(record(sess, "turn-3", place))) is None, "it is not its time"
    assert await store.begin(replace(record(sess, "turn-2", START))) is None, "the branch has moved on"
    begun = await store.begin(record(sess, "turn-2", place, context=5))
    assert begun is not None
    assert (begun.status, begun.epoch > first.epoch) == (TurnStatus.RUNNING, True)
    await store.finish(begun, COMMITTED, OUTPUT, EVENTS)
    assert (await store.context(TENANT, sess, MAIN)).tokens == (1, 2, 3, 7, 8) * 2


@pytest.mark.parametrize(
    ("policy", "halt"), [(OnConflict.INTERRUPT, Halt.INTERRUPT), (OnConflict.ROLLBACK, Halt.DISCARD)]
)
async def test_who_interrupts_is_next_and_stops_the_one_that_runs(
    store: SessionStore, policy: OnConflict, halt: Halt
) -> None:
    sess = await session(store)
    running = await opened(store, record(sess))
    await opened(store, enqueued(record(sess, "turn-2")))
    await opened(store, enqueued(record(sess, "turn-3"), policy))
    assert await store.beat(HERE, 5.0) == {running.id: halt}
    await store.finish(running, Ending(TurnStatus.CANCELLED), (), ())
    following = await store.waiting(sess, MAIN)
    assert following is not None
    assert following.id == "turn-3"


async def test_the_queue_of_a_branch_is_bounded(store: SessionStore) -> None:
    sess = await session(store)
    await opened(store, record(sess))
    for start in range(0, MAX_QUEUED, 32):
        turns = [enqueued(record(sess, f"queued-{start + n}")) for n in range(32)]
        await asyncio.gather(*(store.open(turn, None) for turn in turns))
    with pytest.raises(ResourceExhausted):
        await store.open(enqueued(record(sess, "turn-2")), None)


async def test_a_stale_head_is_refused_and_the_beginning_can_be_expected(store: SessionStore) -> None:
    sess = await session(store)
    turn = await committed(store, record(sess, head_is_expected=True))
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    for stale in (None, TurnId("turn-0")):
        with pytest.raises(FailedPrecondition) as refused:
            await store.open(record(sess, "turn-2", place, head_is_expected=True, expected_head=stale), None)
        assert refused.value.field == "expected_head"
    await opened(store, record(sess, "turn-2", place, head_is_expected=True, expected_head=turn.id))


async def test_a_turn_that_was_prepared_on_an_older_head_is_prepared_anew(store: SessionStore) -> None:
    sess = await session(store)
    await committed(store, record(sess))
    assert await store.open(record(sess, "turn-2", START), None) is None


async def test_an_owner_that_lives_keeps_its_turns_and_one_that_is_silent_loses_them(store: SessionStore) -> None:
    """Invariants 1 and 15."""
    sess = await session(store)
    await store.beat(HERE, 60.0)
    turn = await opened(store, record(sess))
    await store.append(turn, EVENTS[0])
    assert await store.adopt(THERE, frozenset(), 10) == ()
    await store.beat(HERE, 0.0)
    (taken,) = await store.adopt(THERE, frozenset(), 10)
    assert (taken.id, taken.owner, taken.epoch, taken.prepared) == (turn.id, THERE, turn.epoch + 1, turn.prepared)
    for write in (
        store.append(turn, EVENTS[1]),
        store.append(turn, EVENTS[0]),
        store.finish(turn, COMMITTED, OUTPUT, EVENTS),
    ):
        with pytest.raises(StaleAttempt):
            await write
    await store.finish(taken, COMMITTED, OUTPUT, EVENTS)
    with pytest.raises(StaleAttempt):
        await store.finish(turn, COMMITTED, OUTPUT, EVENTS)


async def test_a_turn_that_waits_is_begun_by_who_took_it_over_and_nobody_else(store: SessionStore) -> None:
    """Invariant 15: whoever lost his lease may still believe that it waits with him."""
    sess = await session(store)
    first = await opened(store, record(sess))
    await opened(store, enqueued(record(sess, "turn-2")))
    await store.finish(first, COMMITTED, OUTPUT, EVENTS)
    await store.beat(HERE, 0.0)
    (taken,) = await store.adopt(THERE, frozenset(), 10)
    await store.beat(THERE, 60.0)
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    assert await store.begin(record(sess, "turn-2", place)) is None
    begun = await store.begin(replace(record(sess, "turn-2", place), owner=taken.owner))
    assert begun is not None
    assert (begun.owner, begun.status) == (THERE, TurnStatus.RUNNING)


async def test_two_that_adopt_at_once_do_not_get_the_same_turn(store: SessionStore) -> None:
    sess = await session(store)
    await opened(store, record(sess))
    await store.beat(THERE, 60.0)
    await store.beat(HERE, 0.0)
    taken = await asyncio.gather(
        store.adopt(THERE, frozenset(), 10), store.adopt(THERE, frozenset({TurnId("turn-1")}), 10)
    )
    assert [len(each) for each in taken] == [1, 0]


async def test_an_owner_finds_its_own_turns_that_it_does_not_run(store: SessionStore) -> None:
    sess = await session(store)
    await store.beat(HERE, 60.0)
    turn = await opened(store, record(sess))
    assert await store.adopt(HERE, frozenset({turn.id}), 10) == ()
    (taken,) = await store.adopt(HERE, frozenset(), 10)
    assert taken.epoch == turn.epoch + 1


async def test_turns_that_wait_are_adopted_too(store: SessionStore) -> None:
    sess = await session(store)
    await opened(store, record(sess))
    await opened(store, enqueued(record(sess, "turn-2")))
    taken = await store.adopt(THERE, frozenset(), 10)
    assert [(turn.id, turn.status) for turn in taken] == [
        ("turn-1", TurnStatus.RUNNING),
        ("turn-2", TurnStatus.QUEUED),
    ]
    assert await store.drop(taken[1], Ending(TurnStatus.CANCELLED))
    assert not await store.drop(taken[1], Ending(TurnStatus.CANCELLED))


async def test_a_halt_is_asked_once_and_is_nothing_to_a_turn_that_ended(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, record(sess))
    assert (await store.halt(TENANT, sess, turn.id, Halt.INTERRUPT)).halt is Halt.INTERRUPT
    assert (await store.halt(TENANT, sess, turn.id, Halt.DISCARD)).halt is Halt.INTERRUPT
    await store.finish(turn, replace(COMMITTED, stop=StopReason.INTERRUPTED), OUTPUT, EVENTS)
    assert await store.beat(HERE, 1.0) == {}
    with pytest.raises(NotFound) as unknown:
        await store.halt(TENANT, sess, TurnId("turn-none"), Halt.DISCARD)
    assert unknown.value.field == "turn"


async def test_a_session_that_renders_anew_has_the_newest_rendering_as_its_context(store: SessionStore) -> None:
    sess = await session(store, rerender=True)
    await committed(store, record(sess))
    await committed(store, record(sess, "turn-2", Place(0, 1), prompt=(5, 6)))
    context = await store.context(TENANT, sess, MAIN)
    assert context.tokens == (5, 6, 7, 8)
    assert [item.role for item in context.items] == ["user", "assistant"] * 2


async def test_the_preamble_is_what_the_system_said_at_first(store: SessionStore) -> None:
    sess = await session(store)
    said = (Item("system", "Be brief."), Item("developer", "In English."), Item("user", "Hi."), Item("system", "No."))
    await committed(store, record(sess, items=said))
    assert (await store.context(TENANT, sess, MAIN)).preamble == said[:2]


async def test_a_deleted_session_is_gone_and_its_turn_is_fenced(store: SessionStore) -> None:
    sess = await talked(store, 2)
    await store.create(Session(SessionId("sess-2"), TENANT, "model", 0), key())
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    running = await opened(store, record(sess, "turn-2", place), key("turn"))
    await store.delete(TENANT, sess)
    with pytest.raises(NotFound):
        await store.get(TENANT, sess)
    for write in (
        store.append(running, TurnEvent(1, 0, (1,), "x")),
        store.finish(running, COMMITTED, OUTPUT, EVENTS),
    ):
        with pytest.raises(StaleAttempt):
            await write
    assert [each.id for each in await store.list(TENANT, None, 10)] == ["sess-2"]
    assert await store.adopt(THERE, frozenset(), 10) == ()


async def test_a_key_of_another_try_counts_for_a_while_and_a_first_try_is_a_turn_of_its_own(
    store: SessionStore, execute: Execute
) -> None:
    sess = await session(store)
    first, again = key(), key()
    first, again = replace(first, first=True, window_s=60), replace(again, window_s=60)
    one = await opened(store, enqueued(record(sess, "turn-1")), first)
    found = await store.open(enqueued(record(sess, "turn-2")), again)
    assert found is not None
    assert (found[0].id, found[1]) == (one.id, False)
    two = await opened(store, enqueued(record(sess, "turn-3")), first)
    known = await store.known(TENANT, sess, again)
    assert known is not None
    assert known.id == two.id
    await execute("UPDATE keys SET at = at - 61000")
    assert await store.known(TENANT, sess, again) is None
    await opened(store, enqueued(record(sess, "turn-4")), again)
