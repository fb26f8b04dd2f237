"""A session store under any use, beside a model of it: the same histories, the same turns, the same refusals."""

import asyncio
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from runtime.domain.sessions import MAIN, Ending, Halt, Item, OnConflict, StopReason, TurnEvent, TurnRecord, TurnStatus
from runtime.domain.spending import NOTHING, Amounts, Reserve
from runtime.errors import FailedPrecondition, NotFound, StaleAttempt
from runtime.ids import GatewayId, SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.scale import scaled
from tests.store.servers import empty, postgres
from tests.store.talking import MASTER, TENANT, enqueued, key, record, session

T = TypeVar("T")
OWNERS = (GatewayId("gw-0"), GatewayId("gw-1"))
WHICH = st.integers(0, 5)
POLICIES = st.sampled_from(OnConflict)
SLICE = Amounts(1, 1, 4, 1, 10, 10)


@dataclass
class Said:
    """A committed turn: its tokens, and what was said in it."""

    turn: TurnId
    tokens: tuple[int, ...]
    items: tuple[Item, ...]


@dataclass
class Live:
    """A turn that has not ended, as its owner knows it."""

    record: TurnRecord
    branch: str
    events: list[TurnEvent] = field(default_factory=list)


class Store(RuleBasedStateMachine):
    """One session. `history` is what each branch has said, `running` and `queued` what is under way on it."""

    def __init__(self) -> None:
        super().__init__()
        self.life = ExitStack()
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self.fresh())
        self.session: SessionId = self.do(session(self.store))
        self.history: dict[str, list[Said]] = {MAIN: []}
        self.running: dict[str, Live] = {}
        self.queued: dict[str, list[Live]] = {MAIN: []}
        self.ended: dict[TurnId, tuple[TurnStatus, tuple[TurnEvent, ...]]] = {}
        self.said_on: dict[TurnId, str] = {}
        self.stale: list[Live] = []
        self.keys: dict[str, TurnId] = {}
        self.used = NOTHING
        self.happened = 0
        self.numbers = iter(range(10_000))
        for owner in OWNERS:
            self.do(self.store.beat(owner, 600.0))

    async def fresh(self) -> SessionStore:
        return await self.another()

    async def another(self) -> SessionStore:
        """A store on SQLite."""
        folder = self.life.enter_context(tempfile.TemporaryDirectory())
        database = SqliteDatabase(Path(folder) / "sessions.sqlite", MASTER)
        await database.open()
        return SqlSessionStore(database)

    def do(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def branch(self, which: int) -> str:
        return [*self.history][which % len(self.history)]

    def prepared(self, name: str, branch: str, owner: GatewayId) -> TurnRecord:
        context = self.do(self.store.context(TENANT, self.session, branch))
        prompt = (1000 + next(self.numbers),)
        turn = record(
            self.session, name, context.branch.place, prompt=prompt, branch=branch, owner=owner,
            context=len(context.tokens),
        )  # fmt: skip
        return replace(turn, reserve=Reserve(SLICE))

    @rule(which=WHICH, owner=WHICH, policy=POLICIES, keyed=st.booleans())
    def open(self, which: int, owner: int, policy: OnConflict, keyed: bool) -> None:
        branch, name = self.branch(which), f"turn-{next(self.numbers)}"
        turn = enqueued(self.prepared(name, branch, OWNERS[owner % 2]), policy)
        under = key(f"key-{name}") if keyed else None
        busy = branch in self.running or self.queued[branch]
        if busy and policy is OnConflict.REJECT:
            with pytest.raises(FailedPrecondition):
                self.do(self.store.open(turn, under))
            return
        found = self.do(self.store.open(turn, under))
        assert found is not None
        opened, new = found
        assert (new, opened.status) == (True, TurnStatus.QUEUED if busy else TurnStatus.RUNNING)
        live = Live(opened, branch)
        self.happened += 1
        if keyed:
            self.keys[f"key-{name}"] = opened.id
        if not busy:
            self.running[branch] = live
        elif policy is OnConflict.ENQUEUE:
            self.queued[branch].append(live)
        else:
            self.queued[branch].insert(0, live)

    @precondition(lambda self: self.keys)
    @rule(which=WHICH, another=st.booleans())
    def open_again(self, which: int, another: bool) -> None:
        name, turn = [*self.keys.items()][which % len(self.keys)]
        again = record(self.session, "turn-again")
        if another:
            with pytest.raises(FailedPrecondition):
                self.do(self.store.open(again, key(name, b"two")))
        else:
            found = self.do(self.store.open(again, key(name)))
            assert found is not None
            assert (found[0].id, found[1]) == (turn, False)

    @precondition(lambda self: any(self.queued.values()))
    @rule(which=WHICH)
    def begin(self, which: int) -> None:
        branch = self.branch(which)
        first = self.queued[branch][0] if self.queued[branch] and branch not in self.running else None
        waiting = self.do(self.store.waiting(self.session, branch))
        assert (waiting and waiting.id) == (first and first.record.id)
        if first is None:
            return
        fresh = self.prepared(first.record.id, branch, first.record.owner)
        begun = self.do(self.store.begin(replace(first.record, prepared=fresh.prepared)))
        assert begun is not None
        self.happened += 1
        self.running[branch] = Live(begun, branch)
        del self.queued[branch][0]

    @precondition(lambda self: self.running)
    @rule(which=WHICH, count=st.integers(0, 3), twice=st.booleans())
    def append(self, which: int, count: int, twice: bool) -> None:
        live = [*self.running.values()][which % len(self.running)]
        index = sum(len(event.tokens) for event in live.events)
        tokens = tuple(range(index, index + count))
        event = TurnEvent(len(live.events) + 1, index, tokens, f"ü{count}")
        for _ in range(1 + twice):
            self.do(self.store.append(live.record, event))
        live.events.append(event)

    @precondition(lambda self: self.running)
    @rule(which=WHICH, status=st.sampled_from((TurnStatus.COMMITTED, TurnStatus.CANCELLED)), twice=st.booleans())
    def finish(self, which: int, status: TurnStatus, twice: bool) -> None:
        branch = [*self.running][which % len(self.running)]
        live = self.running.pop(branch)
        tokens = tuple(token for event in live.events for token in event.tokens)
        stop = StopReason.LENGTH if status is TurnStatus.COMMITTED else None
        took = Amounts(1, 0, len(tokens), 1, 5, 6)
        ending = Ending(status, stop, kept=len(tokens), attempts=1, took=took)
        self.used += took
        self.happened += 1
        for _ in range(1 + twice):
            self.do(self.store.finish(live.record, ending, tokens, live.events))
        self.ended[live.record.id] = status, tuple(live.events)
        self.said_on[live.record.id] = branch
        if status is TurnStatus.COMMITTED:
            assert live.record.prepared is not None
            items = (*live.record.asked.items, Item("assistant", "".join(event.text for event in live.events)))
            self.history[branch].append(Said(live.record.id, (*live.record.prepared.prompt, *tokens), items))
        self.stale.append(live)

    @precondition(lambda self: self.running)
    @rule(which=WHICH, more=st.integers(0, 20), twice=st.booleans())
    def extend(self, which: int, more: int, twice: bool) -> None:
        live = [*self.running.values()][which % len(self.running)]
        held = live.record.reserve.held
        want = replace(held, completion_tokens=held.completion_tokens + more)
        for _ in range(1 + twice):
            assert self.do(self.store.extend(live.record, want, Amounts(wall_ms=1))) == want
        live.record = replace(live.record, reserve=Reserve(want, Amounts(wall_ms=1)))

    @precondition(lambda self: self.stale)
    @rule(which=WHICH)
    def write_too_late(self, which: int) -> None:
        live = self.stale[which % len(self.stale)]
        with pytest.raises(StaleAttempt):
            self.do(self.store.append(live.record, TurnEvent(len(live.events) + 1, 0, (1,), "late")))
        with pytest.raises(StaleAttempt):
            self.do(self.store.finish(live.record, Ending(TurnStatus.FAILED), (), ()))

    @rule(dead=WHICH)
    def lose_an_owner(self, dead: int) -> None:
        """The other one takes over all that it had, and the dead one wakes too late."""
        old, new = OWNERS[dead % 2], OWNERS[1 - dead % 2]
        self.do(self.store.beat(old, 0.0))
        theirs = {live.record.id: live for live in self.all_live() if live.record.owner == old}
        mine = frozenset(live.record.id for live in self.all_live() if live.record.owner == new)
        taken = self.do(self.store.adopt(new, mine, 1000))
        assert {turn.id for turn in taken} == set(theirs)
        for turn in taken:
            live = theirs[turn.id]
            assert turn.reserve == live.record.reserve
            if turn.status is TurnStatus.RUNNING:
                assert turn.epoch > live.record.epoch
                self.stale.append(Live(live.record, live.branch, [*live.events]))
            live.record = turn
        self.do(self.store.beat(old, 600.0))

    @rule(which=WHICH, at=WHICH)
    def fork(self, which: int, at: int) -> None:
        branch = self.branch(which)
        said = self.history[branch][: at + 1]
        name = f"branch-{next(self.numbers)}"
        made = self.do(self.store.fork(TENANT, self.session, branch, said[-1].turn if said else None, name, None))
        assert made.place.depth == len(said)
        self.happened += 1
        self.history[name], self.queued[name] = [*said], []

    @rule(which=WHICH, to=WHICH)
    def rollback(self, which: int, to: int) -> None:
        branch = self.branch(which)
        said = self.history[branch][:to]
        asked = self.store.rollback(TENANT, self.session, branch, said[-1].turn if said else None, None)
        if branch in self.running:
            with pytest.raises(FailedPrecondition):
                self.do(asked)
            return
        self.do(asked)
        self.happened += 1
        self.history[branch] = said

    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        branch = self.branch(which)
        asked = self.store.drop_branch(TENANT, self.session, branch)
        if branch == MAIN or branch in self.running or self.queued[branch]:
            with pytest.raises(FailedPrecondition):
                self.do(asked)
            return
        self.do(asked)
        self.happened += 1
        del self.history[branch], self.queued[branch]
        reached = {said.turn for history in self.history.values() for said in history}
        gone = {turn for turn, on in self.said_on.items() if on not in self.history and turn not in reached}
        for turn in gone:
            del self.ended[turn], self.said_on[turn]
            with pytest.raises(NotFound):
                self.do(self.store.progress(TENANT, self.session, turn, 0))
        self.keys = {name: turn for name, turn in self.keys.items() if turn not in gone}

    @rule()
    def carry(self) -> None:
        """Out of this store and into another one, where everything that was committed is the same."""
        data = self.do(self.store.read_out(TENANT, self.session))
        other = self.do(self.another())
        self.do(other.take_in(TENANT, data, None))
        for branch, history in self.history.items():
            context = self.do(other.context(TENANT, self.session, branch))
            assert context.tokens == tuple(token for said in history for token in said.tokens)
        for turn, (status, events) in self.ended.items():
            progress = self.do(other.progress(TENANT, self.session, turn, 0))
            assert (progress.turn.status, progress.events) == (status, events)
        assert self.do(other.read_out(TENANT, self.session)) == data
        self.do(other.close())

    @precondition(lambda self: self.running)
    @rule(which=WHICH, how=st.sampled_from(Halt))
    def halt(self, which: int, how: Halt) -> None:
        live = [*self.running.values()][which % len(self.running)]
        told = self.do(self.store.halt(TENANT, self.session, live.record.id, how))
        assert told.halt is not None
        assert live.record.id in self.do(self.store.beat(live.record.owner, 600.0))

    @rule()
    def ask_for_a_branch_that_is_not_there(self) -> None:
        with pytest.raises(NotFound):
            self.do(self.store.context(TENANT, self.session, "nowhere"))

    @invariant()
    def has_the_same_histories(self) -> None:
        _, branches = self.do(self.store.get(TENANT, self.session))
        assert {branch.name for branch in branches} == set(self.history)
        for branch in branches:
            said = self.history[branch.name]
            running = self.running.get(branch.name)
            assert branch.live == (running and running.record.id)
            assert branch.head == (said[-1].turn if said else None)
            context = self.do(self.store.context(TENANT, self.session, branch.name))
            assert context.tokens == tuple(token for each in said for token in each.tokens)
            assert branch.tokens == len(context.tokens)
            items = self.do(self.store.items(TENANT, self.session, branch.name, 0, 10_000))
            assert [item for *_, item in items] == [item for each in said for item in each.items]

    @invariant()
    def has_the_same_account(self) -> None:
        """Invariant 12: what is held is what running turns hold, and what is spent is what those took that ended."""
        account = self.do(self.store.get(TENANT, self.session))[0].account
        held = sum((live.record.reserve.held for live in self.running.values()), NOTHING)
        assert (account.held, account.used, account.notices) == (held, self.used, self.happened)

    @invariant()
    def has_the_same_turns(self) -> None:
        for live in self.running.values():
            progress = self.do(self.store.progress(TENANT, self.session, live.record.id, 0))
            assert (progress.turn.status, progress.events) == (TurnStatus.RUNNING, tuple(live.events))
        for turn, (status, events) in [*self.ended.items()][-3:]:
            progress = self.do(self.store.progress(TENANT, self.session, turn, 0))
            assert (progress.turn.status, progress.events) == (status, events)

    def all_live(self) -> Iterator[Live]:
        yield from self.running.values()
        for queued in self.queued.values():
            yield from queued

    def teardown(self) -> None:
        self.do(self.store.close())
        self.runner.close()
        self.life.close()


HURRIED = settings(
    max_examples=scaled(12, 150),
    stateful_step_count=scaled(30, 50),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.timeout(600)
def test_sqlite_is_like_the_model() -> None:
    run_state_machine_as_test(Store, settings=HURRIED)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_postgres_is_like_the_model() -> None:
    from runtime.store.postgres import PostgresDatabase

    with postgres() as dsn:

        class OnPostgres(Store):
            async def fresh(self) -> SessionStore:
                empty(dsn)
                database = PostgresDatabase(dsn, MASTER)
                await database.open()
                return SqlSessionStore(database)

        run_state_machine_as_test(OnPostgres, settings=settings(HURRIED, max_examples=scaled(5, 50)))
