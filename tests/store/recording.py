"""Clients of one session who do what they like at the same time, and the history of what they were told."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from runtime.domain.sessions import (
    MAIN,
    Ending,
    Halt,
    OnConflict,
    Place,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.errors import BatonError
from runtime.ids import GatewayId, SessionId, TurnId
from runtime.session_store import SessionStore
from tests.store import sequential as seq
from tests.store.linear import Call
from tests.store.talking import TENANT, enqueued, key, record

T = TypeVar("T")
_LOST = 0.03
_EVENTS = (TurnEvent(1, 0, seq.OUTPUT, "seven eight"),)


@dataclass
class History:
    """Of one session: whoever asks is answered only after both his moments were written down."""

    calls: list[Call[seq.What]] = field(default_factory=list)
    _clock: "count[int]" = field(default_factory=count)

    async def told(self, chance: random.Random, what: seq.What, work: Awaitable[T], shape: Callable[[T], object]) -> T:
        """Raises what the store raises; now and then its answer is lost, and whoever asked never hears it."""
        began = next(self._clock)
        try:
            found = await work
        except BatonError as error:
            self.calls.append(Call(what, began, next(self._clock), seq.Refused(error.status.code, error.field)))
            raise
        ended = None if chance.random() < _LOST else next(self._clock)
        self.calls.append(Call(what, began, ended, shape(found)))
        if ended is None:
            raise LostAnswer
        return found


class LostAnswer(Exception):
    """It happened, and nobody told."""


@dataclass
class Shared:
    """What the clients know of each other: names of branches and of turns."""

    names: "count[int]"
    branches: list[str] = field(default_factory=lambda: [MAIN])
    turns: list[TurnId] = field(default_factory=list)


class Client:
    """An owner of turns. Does one thing after the other, each drawn by lot."""

    def __init__(
        self, store: SessionStore, session: SessionId, number: int, chance: random.Random, shared: Shared, told: History
    ) -> None:
        self._store = store
        self._session = session
        self._owner = GatewayId(f"{session}/{number}")
        self._chance = chance
        self._shared = shared
        self._history = told
        self._mine: list[TurnRecord] = []

    async def act(self, things: int) -> None:
        for _ in range(things):
            do = self._chance.choice(
                (self._talk, self._talk, self._talk, self._begin, self._fork, self._rollback, self._cancel, self._look)
            )
            try:
                await do(self._chance.choice(self._shared.branches))
            except (BatonError, LostAnswer):
                continue

    async def _told(self, what: seq.What, work: Awaitable[T], shape: Callable[[T], object]) -> T:
        return await self._history.told(self._chance, what, work, shape)

    async def _past(self, branch: str) -> tuple[Place, TurnId | None, int]:
        found = await self._told(
            seq.Past(branch),
            self._store.context(TENANT, self._session, branch),
            lambda context: (context.branch.place, context.branch.head, context.tokens),
        )
        return found.branch.place, found.branch.head, len(found.tokens)

    async def _talk(self, branch: str) -> None:
        base, head, context = await self._past(branch)
        ident, chance = TurnId(str(next(self._shared.names))), self._chance
        turn = enqueued(self._record(ident, branch, base, context), chance.choice(tuple(OnConflict)))
        expects: tuple[TurnId | None, ...] = (head,) if chance.random() < 0.3 else ()
        if expects:
            asked = replace(turn.asked, expected_head=head, head_is_expected=True)
            turn = replace(turn, asked=asked)
        under = f"key-{chance.randrange(12)}" if chance.random() < 0.2 else None
        policy = turn.asked.on_conflict
        assert policy is not None
        opened = await self._told(
            seq.Open(ident, branch, self._owner, base, policy, expects, under),
            self._store.open(turn, None if under is None else key(under)),
            lambda found: found and (found[0].id, found[1], *_told_of(found[0])),
        )
        if opened is None or not opened[1]:
            return
        self._shared.turns.append(ident)
        if opened[0].status is TurnStatus.RUNNING:
            await self._finish(opened[0])

    async def _finish(self, turn: TurnRecord) -> None:
        """Perhaps not at once, and as somebody wants it stopped."""
        self._mine.append(turn)
        if self._chance.random() < 0.2:
            return
        turn = self._mine.pop(self._chance.randrange(len(self._mine)))
        halted = await self._told(
            seq.Hear(self._owner),
            self._store.beat(self._owner, 600.0),
            dict,
        )
        discarded = halted.get(turn.id) is Halt.DISCARD
        status = TurnStatus.CANCELLED if discarded else TurnStatus.COMMITTED
        stop = None if discarded else StopReason.END_TURN
        ending = Ending(status, stop, kept=0 if discarded else seq.KEPT)
        await self._told(
            seq.Finish(turn.id, turn.branch, turn.epoch, status),
            self._store.finish(turn, ending, seq.OUTPUT, _EVENTS),
            lambda _: None,
        )

    async def _begin(self, branch: str) -> None:
        work = self._store.waiting(self._session, branch)
        waiting = await self._told(seq.Waiting(branch), work, lambda found: found and found.id)
        if waiting is None:
            return
        base, _, context = await self._past(branch)
        turn = replace(waiting, owner=self._owner, prepared=self._record(waiting.id, branch, base, context).prepared)
        begun = await self._told(
            seq.Begin(turn.id, branch, self._owner, base),
            self._store.begin(turn),
            lambda found: found and _told_of(found),
        )
        if begun is not None:
            await self._finish(begun)

    async def _fork(self, branch: str) -> None:
        name, at = f"branch-{self._chance.randrange(4)}", self._some_turn()
        await self._told(
            seq.Fork(branch, at, name),
            self._store.fork(TENANT, self._session, branch, at, name, None),
            lambda made: (made.place, made.head, made.epoch, made.live),
        )
        self._shared.branches.append(name)

    async def _rollback(self, branch: str) -> None:
        to = self._some_turn()
        await self._told(
            seq.Rollback(branch, to),
            self._store.rollback(TENANT, self._session, branch, to, None),
            lambda back: (back.place, back.head, back.epoch, back.live),
        )

    async def _cancel(self, _branch: str) -> None:
        turn, how = self._some_turn() or TurnId("nobody's"), self._chance.choice(tuple(Halt))
        await self._told(seq.Cancel(turn, how), self._store.halt(TENANT, self._session, turn, how), _told_of)

    async def _look(self, _branch: str) -> None:
        await self._told(
            seq.Get(),
            self._store.get(TENANT, self._session),
            lambda found: tuple(sorted((each.name, each.place, each.head, each.epoch, each.live) for each in found[1])),
        )

    def _some_turn(self) -> TurnId | None:
        return self._chance.choice((None, *self._shared.turns[-4:]))

    def _record(self, ident: TurnId, branch: str, base: Place, context: int) -> TurnRecord:
        return record(
            self._session, ident, base, prompt=(int(ident),), branch=branch, owner=self._owner, context=context
        )


def _told_of(turn: TurnRecord) -> tuple[object, ...]:
    return turn.status, turn.epoch, turn.halt


async def recorded(
    stores: Sequence[SessionStore], session: SessionId, seed: int, clients: int = 5, things: int = 12
) -> History:
    """Of so many clients, spread over the gateways' stores, each of whom does so many things."""
    # A store names turns over all its sessions.
    shared, history = Shared(count(1000 * seed + 1)), History()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            chance = random.Random(f"{seed}/{number}")
            client = Client(stores[number % len(stores)], session, number, chance, shared, history)
            group.create_task(client.act(things))
    return history
