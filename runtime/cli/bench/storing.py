"""What a session store costs: turns, single commits, long histories, many sessions, and a token's way to its client.

The store is real; the decode workers are not there, and tokens come as the measurement wants them.
"""

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from runtime.cli.bench import filling
from runtime.clock import LoopClock
from runtime.domain.generation import Delta, Generation
from runtime.domain.messages import View
from runtime.domain.sequence import FinishReason, Sampled, Sampling
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Ending,
    Item,
    Place,
    Prepared,
    Session,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.engine.simulated import SimulatedTokenizer, simulated_spec
from runtime.ids import GatewayId, Ids, SessionId, TenantId, TurnId
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.roles.session_settings import SessionSettings
from runtime.roles.sessions import SessionRole
from runtime.session_store import SessionStore
from runtime.store.transaction import Database

_TENANT, _OWNER = TenantId("bench"), GatewayId("gw-bench")
_ASKED = Asked((Item("user", "What is my dog called?"),), Sampling(64), True, 60.0)
_PROMPT = tuple(range(300, 340))
_APPENDS = 16
_MODEL = "simulated"
_AT_ONCE = 200
_SOME = 5000
_RANDOM = random.Random(5)
_IDS = Ids(_RANDOM)


@dataclass(frozen=True, slots=True)
class Commits:
    """Milliseconds of each write, and the turns that they made in `seconds`."""

    milliseconds: Sequence[float]
    turns: int
    seconds: float

    def percentile(self, share: float) -> float:
        return percentile(self.milliseconds, share)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


async def made(store: SessionStore) -> SessionId:
    session = Session(_IDS.session(), _TENANT, _MODEL, 0, vocabulary=SimulatedTokenizer.vocabulary)
    return (await store.create(session, None)).id


async def turns(store: SessionStore, sessions: int, seconds: float) -> Commits:
    """So many sessions at once, each with a turn after the other: opened, 16 tokens appended one by one, committed."""
    names = [await made(store) for _ in range(sessions)]
    milliseconds: list[float] = []
    ends = time.perf_counter() + seconds
    count = 0

    async def one(session: SessionId) -> None:
        nonlocal count
        depth = 0
        while time.perf_counter() < ends:
            await _turn(store, session, depth, _APPENDS, milliseconds)
            depth, count = depth + 1, count + 1

    began = time.perf_counter()
    await asyncio.gather(*map(one, names))
    return Commits(milliseconds, count, time.perf_counter() - began)


async def append_after(store: SessionStore, short: int, long: int, rounds: int) -> tuple[float, float]:
    """Median milliseconds of an append to a session of `short` items and to one of `long`, taken in turn."""
    running = []
    for items in (short, long):
        session = await made(store)
        for depth in range(items // 2):
            await _turn(store, session, depth, 0, [])
        running.append(await _opened(store, session, items // 2))
    taken: tuple[list[float], list[float]] = ([], [])
    for seq in range(1, rounds + 1):
        for turn, milliseconds in zip(running, taken, strict=True):
            event = TurnEvent(seq, seq - 1, (seq,), " word")
            await _timed(milliseconds, store.append(turn, event))
    return percentile(taken[0], 0.5), percentile(taken[1], 0.5)


async def look_up(store: SessionStore, some: Sequence[SessionId], gets: int) -> tuple[float, float]:
    """p99 milliseconds of a get and of a list, among all the sessions that there are."""
    got: list[float] = []
    listed: list[float] = []
    for place in range(gets):
        session = some[place % len(some)]
        await _timed(got, store.get(_TENANT, session))
        await _timed(listed, store.list(_TENANT, session, 20))
    return percentile(got, 0.99), percentile(listed, 0.99)


async def fill(database: Database, sessions: int) -> list[SessionId]:
    """Make so many sessions; gives some of them."""
    return _RANDOM.sample(await filling.fill(database, _IDS, _TENANT, _MODEL, sessions), min(sessions, _SOME))


async def emission(store: SessionStore, streams: int, tokens: int, every_s: float) -> tuple[list[float], list[float]]:
    """Milliseconds from the arrival of a token at the gateway to its emission, and those of the commits meanwhile."""
    timing = _TimedStore(store)
    script = _Script(tokens, every_s)
    emitted: list[float] = []

    async def one(role: SessionRole) -> None:
        turn, _ = await role.open(_TENANT, await made(store), MAIN, _ASKED, None)
        async for progress in role.watch(turn, 0):
            now = time.perf_counter()
            for event in progress.events:
                places = range(event.index, event.index + len(event.tokens))
                emitted.extend((now - script.arrived[turn.id, place]) * 1000 for place in places)

    async with _gateway(script, cast("SessionStore", timing)) as role:
        await asyncio.gather(*(one(role) for _ in range(streams)))
    return emitted, timing.milliseconds


async def idle(store: SessionStore, sessions: int) -> float:
    """Bytes of Python's memory that a gateway has for each session that had a turn here and has none now."""
    script = _Script(1, 0.0)

    async def some(role: SessionRole, count: int) -> None:
        for _ in range(0, count, _AT_ONCE):
            await asyncio.gather(*(one(role) for _ in range(_AT_ONCE)))

    async def one(role: SessionRole) -> None:
        turn, _ = await role.open(_TENANT, await made(store), MAIN, _ASKED, None)
        async for _ in role.watch(turn, 0):
            pass

    async with _gateway(script, store) as role:
        tracemalloc.start()
        try:
            await some(role, _AT_ONCE)
            before = _memory(script)
            await some(role, sessions)
            return max(_memory(script) - before, 0) / sessions
        finally:
            tracemalloc.stop()


def _memory(script: "_Script") -> int:
    """Without what the measurement itself remembers."""
    script.arrived.clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@asynccontextmanager
async def _gateway(script: "_Script", store: SessionStore) -> AsyncIterator[SessionRole]:
    role = SessionRole(cast("GatewayRole", script), store, _IDS, LoopClock(), SessionSettings(), _inline)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(role.run())
        await asyncio.sleep(0)
        yield role
        running.cancel()


class _TimedStore:
    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.milliseconds: list[float] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._store, name)
        if name not in ("append", "finish"):
            return method
        return lambda *arguments: _timed(self.milliseconds, method(*arguments))


class _Script:
    """A gateway without a mesh: its turns bring a token every `every_s`."""

    gateway = _OWNER

    def __init__(self, tokens: int, every_s: float) -> None:
        self.arrived: dict[tuple[TurnId, int], float] = {}
        self._tokens = tokens
        self._every_s = every_s
        self._model = ServedModel(simulated_spec(_MODEL, 32, 4096), SimulatedTokenizer(), 0)

    def served(self, _name: str) -> ServedModel:
        return self._model

    def view(self) -> View:
        return View(0, 0)

    def check(self, generation: Generation) -> None:
        pass

    @asynccontextmanager
    async def open(self, generation: Generation) -> AsyncIterator[AsyncIterator[Delta]]:
        assert generation.claim is not None
        yield self._deltas(generation.claim.turn)

    async def _deltas(self, turn: TurnId) -> AsyncIterator[Delta]:
        for index in range(self._tokens):
            await asyncio.sleep(self._every_s)
            self.arrived[turn, index] = time.perf_counter()
            finish = FinishReason.LENGTH if index == self._tokens - 1 else None
            yield Delta(index, (Sampled(300),), " word", finish)


async def _inline(work: Callable[[], Prepared]) -> Prepared:
    return work()


async def _opened(store: SessionStore, session: SessionId, depth: int) -> TurnRecord:
    prepared = Prepared(Place(0, depth), _PROMPT, depth * len(_PROMPT), 64)
    record = TurnRecord(_IDS.turn(), session, _TENANT, MAIN, _MODEL, TurnStatus.RUNNING, 0, _OWNER, _ASKED, prepared)
    opened = await store.open(record, None)
    assert opened is not None, "nobody else is on this branch"
    return opened[0]


async def _turn(store: SessionStore, session: SessionId, depth: int, appends: int, milliseconds: list[float]) -> None:
    turn = await _timed(milliseconds, _opened(store, session, depth))
    events = [TurnEvent(seq, seq - 1, (seq,), " word") for seq in range(1, appends + 1)]
    for event in events:
        await _timed(milliseconds, store.append(turn, event))
    ending = Ending(TurnStatus.COMMITTED, StopReason.LENGTH)
    await _timed(milliseconds, store.finish(turn, replace(ending, kept=0), range(1, appends + 1), events))


async def _timed(milliseconds: list[float], work: Any) -> Any:  # noqa: ANN401 - whatever the work gives
    began = time.perf_counter()
    result = await work
    milliseconds.append((time.perf_counter() - began) * 1000)
    return result
