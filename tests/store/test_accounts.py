"""A session's account on each of the stores: what is held and spent, what is refused, and branches that run at once."""

import asyncio
from dataclasses import astuple, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.domain.sessions import MAIN, Ending, Session, StopReason, TurnRecord, TurnStatus
from runtime.domain.spending import NOTHING, Account, Amounts, Limits, Reserve
from runtime.errors import BatonError, BudgetSpent, ResourceExhausted, StaleAttempt
from runtime.ids import SessionId
from runtime.session_store import SessionStore
from runtime.store.packing import unpack_reserve
from runtime.store.transaction import Database, Transaction
from tests.scale import scaled
from tests.store.talking import (
    COMMITTED,
    EVENTS,
    HERE,
    OUTPUT,
    TENANT,
    THERE,
    enqueued,
    opened,
    record,
    session,
)

SLICE = Amounts(30, 30, 16, 1, 1000, 5000)
TOOK = Amounts(20, 10, 3, 1, 700, 900)


def wanting(turn: TurnRecord, want: Amounts = SLICE) -> TurnRecord:
    return replace(turn, reserve=Reserve(want))


async def limited(store: SessionStore, limits: Limits, name: str = "sess-1") -> SessionId:
    made = await store.create(Session(SessionId(name), TENANT, "model", 0, account=Account(limits)), None)
    return made.id


async def account(store: SessionStore, sess: SessionId) -> Account:
    found, _ = await store.get(TENANT, sess)
    return found.account


async def test_a_turn_holds_a_slice_while_it_runs_and_has_spent_what_it_took(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, wanting(record(sess)))
    assert turn.reserve.held == SLICE
    assert ((await account(store, sess)).used, (await account(store, sess)).held) == (NOTHING, SLICE)
    for _ in range(2):  # the acknowledgement of the first was lost
        more = await store.extend(turn, replace(SLICE, completion_tokens=32), Amounts(wall_ms=400))
        assert more.completion_tokens == 32
    assert (await account(store, sess)).held.completion_tokens == 32
    for _ in range(2):
        await store.finish(turn, replace(COMMITTED, took=TOOK), OUTPUT, EVENTS)
    told = await account(store, sess)
    assert (told.used, told.held) == (TOOK, NOTHING)
    ending = (await store.progress(TENANT, sess, turn.id, 0)).turn.ending
    assert ending is not None
    assert ending.took == TOOK
    with pytest.raises(StaleAttempt):
        await store.extend(turn, SLICE, NOTHING)


async def test_a_limit_shortens_the_slice_and_then_refuses_by_its_name(store: SessionStore) -> None:
    sess = await limited(store, Limits(completion_tokens=20, turns=2))
    first = await opened(store, wanting(record(sess)))
    other = (await store.fork(TENANT, sess, MAIN, None, "other", None)).place
    second = await opened(store, wanting(record(sess, "turn-2", other, branch="other")))
    assert (first.reserve.held.completion_tokens, second.reserve.held.completion_tokens) == (16, 4)
    assert (await store.extend(second, SLICE, NOTHING)).completion_tokens == 4
    third = (await store.fork(TENANT, sess, MAIN, None, "third", None)).place
    with pytest.raises(ResourceExhausted) as later:
        await store.open(wanting(record(sess, "turn-3", third, branch="third")), None)
    assert later.value.field == "limits.completion_tokens"
    await store.finish(first, replace(COMMITTED, took=replace(TOOK, completion_tokens=16)), OUTPUT, EVENTS)
    budget = replace(COMMITTED, stop=StopReason.BUDGET, took=replace(TOOK, completion_tokens=4))
    await store.finish(second, budget, OUTPUT, EVENTS)
    with pytest.raises(BudgetSpent) as refused:
        await store.open(wanting(record(sess, "turn-3", third, branch="third")), None)
    assert refused.value.field == "limits.completion_tokens"
    _, branches = await store.get(TENANT, sess)
    assert [branch.live for branch in branches] == [None] * 3, "nothing was half written"
    assert (await account(store, sess)).held == NOTHING


async def test_a_turn_that_waited_is_refused_when_it_would_begin(store: SessionStore) -> None:
    sess = await limited(store, Limits(turns=1))
    running = await opened(store, wanting(record(sess)))
    waiting = await opened(store, enqueued(wanting(record(sess, "turn-2"))))
    assert waiting.reserve.held == NOTHING
    await store.finish(running, replace(COMMITTED, took=TOOK), OUTPUT, EVENTS)
    place = (await store.context(TENANT, sess, MAIN)).branch.place
    with pytest.raises(BudgetSpent):
        await store.begin(wanting(record(sess, "turn-2", place)))
    assert await store.drop(waiting, Ending(TurnStatus.FAILED))


async def test_what_a_dead_owner_held_is_its_successors_and_comes_back_at_the_end(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, wanting(record(sess)))
    held = await store.extend(turn, replace(SLICE, wall_ms=9000), Amounts(wall_ms=600, kv_byte_seconds=50))
    await store.beat(HERE, 0.0)
    (taken,) = await store.adopt(THERE, frozenset(), 10)
    assert taken.reserve == Reserve(held, Amounts(wall_ms=600, kv_byte_seconds=50))
    with pytest.raises(StaleAttempt):
        await store.extend(turn, SLICE, NOTHING)
    assert (await account(store, sess)).held == held
    await store.finish(taken, replace(COMMITTED, took=TOOK), OUTPUT, EVENTS)
    assert ((await account(store, sess)).held, (await account(store, sess)).used) == (NOTHING, TOOK)


async def held_by_turns(database: Database) -> Amounts:
    async def work(tx: Transaction) -> Amounts:
        rows = await tx.rows("SELECT held FROM turns WHERE held IS NOT NULL")
        return sum((unpack_reserve(row[0]).held for row in rows), NOTHING)

    return await database.read(work)


async def spends(store: SessionStore, sess: SessionId, branch: str, turns: list[int]) -> int:
    """Runs turns on a branch, each giving as many tokens as it wants to or may; says how many these were."""
    given = 0
    for number, wishes in enumerate(turns):
        name = f"{branch}-{number}"
        place = (await store.context(TENANT, sess, branch)).branch.place
        want = Amounts(1, 1, 4, 1, 100, 100)
        try:
            turn = await opened(store, wanting(record(sess, name, place, branch=branch), want))
        except ResourceExhausted:
            continue
        except BudgetSpent:
            return given
        tokens, held = 0, turn.reserve.held
        while tokens < wishes:
            if tokens == held.completion_tokens:
                held = await store.extend(turn, replace(want, completion_tokens=tokens + 4), NOTHING)
                if tokens == held.completion_tokens:
                    break
            tokens += 1
        took = Amounts(1, 0, tokens, 1, 50, 50)
        ending = Ending(TurnStatus.COMMITTED, StopReason.LENGTH, kept=0, took=took)
        await store.finish(turn, ending, (), ())
        given += tokens
    return given


@settings(
    max_examples=scaled(12, 150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    limit=st.integers(0, 120),
    turns=st.integers(1, 12) | st.none(),
    branches=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=4), min_size=2, max_size=5),
)
async def test_branches_that_run_at_once_never_spend_more_than_the_limit_together(
    kept: Database, store: SessionStore, limit: int, turns: int | None, branches: list[list[int]]
) -> None:
    """Invariant 12, and that what is held adds up."""
    number = len(await store.list(TENANT, None, 1000))
    sess = await limited(store, Limits(completion_tokens=limit, turns=turns), f"sess-{number}")
    names = [f"{sess}-b{branch}" for branch in range(len(branches))]
    for name in names:
        await store.fork(TENANT, sess, MAIN, None, name, None)
    running = [spends(store, sess, name, wishes) for name, wishes in zip(names, branches, strict=True)]
    given = sum(await asyncio.gather(*running))
    told = await account(store, sess)
    assert given == told.used.completion_tokens <= limit
    assert turns is None or told.used.turns <= turns
    assert told.held == NOTHING == await held_by_turns(kept)
    wished = sum(sum(each) for each in branches)
    if turns is None and wished + 8 * len(branches) <= limit:
        assert given == wished, "nobody is refused while there is enough"


async def test_what_is_held_is_the_sum_of_what_turns_hold(kept: Database, store: SessionStore) -> None:
    sess = await limited(store, Limits(completion_tokens=100))
    turns = []
    for name in ("one", "two", "three", "four"):
        fork = await store.fork(TENANT, sess, MAIN, None, name, None)
        turns.append(await opened(store, wanting(record(sess, f"turn-{name}", fork.place, branch=name))))
    await asyncio.gather(*(store.extend(turn, replace(SLICE, completion_tokens=40), NOTHING) for turn in turns))
    held = (await account(store, sess)).held
    assert held == await held_by_turns(kept)
    assert held.completion_tokens == 100
    assert astuple(held) != astuple(NOTHING)


async def test_errors_of_budgets_cross_the_store_as_they_are(store: SessionStore) -> None:
    sess = await session(store)
    turn = await opened(store, record(sess))
    error: BatonError = BudgetSpent("nothing left", field="limits.turns")
    await store.finish(turn, Ending(TurnStatus.FAILED, error=error), (), ())
    ending = (await store.progress(TENANT, sess, turn.id, 0)).turn.ending
    assert ending is not None
    assert isinstance(ending.error, BudgetSpent)
