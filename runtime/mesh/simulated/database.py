"""A simulated database server: real transactions, in memory, on a clock of its own, behind an unreliable network.

It runs one transaction after the other, so that a seed repeats. What it has committed survives it. A commit may be
slow, its acknowledgement may be lost, and a transaction may be undone and run again, as databases do when two are in
each other's way.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from runtime.domain.retention import KeptFor
from runtime.domain.sessions import Ending, Halt, TurnEvent, TurnRecord
from runtime.errors import Unavailable
from runtime.ids import GatewayId, TurnId
from runtime.mesh.checking.ledger import Beat, Claim, Ledger, Write
from runtime.mesh.simulated.calling import call
from runtime.mesh.simulated.world import Process, World
from runtime.store.schema import migrate
from runtime.store.sealing import KEY_BYTES, MasterKey, Seals
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import driven
from runtime.store.transaction import Work

T = TypeVar("T")
_ANSWER_S = 1.0
_MASTER = MasterKey(bytes(KEY_BYTES))
_EPOCH_S = 1_700_000_000
_SILENT = Unavailable("the session store does not answer", retry_after_ms=1000)
_claim: ContextVar[Claim | None] = ContextVar("claim", default=None)


@dataclass(frozen=True, slots=True)
class StoreWeather:
    """Chances for each transaction: that it takes up to `slow_s`, and that it is undone once and run again."""

    slow: float = 0.0
    slow_s: float = 0.0
    again: float = 0.0


class StoreServer:
    """`skew_s` is how far its clock is from that of the world."""

    def __init__(self, world: World, weather: StoreWeather, ledger: Ledger, skew_s: float) -> None:
        self.process: Process
        self.group: asyncio.TaskGroup
        self.weather = weather
        self.skew_s = skew_s
        self.ledger = ledger
        self._world = world
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.create_function("now_ms", 0, self.now_ms)
        self._connection.execute("BEGIN")
        self._run(migrate)
        self._connection.execute("COMMIT")

    def start(self) -> None:
        self.process = Process(self._world, "store")
        self.process.run(self._main())

    def close(self) -> None:
        self._connection.close()

    def now_ms(self) -> int:
        return round((_EPOCH_S + self.skew_s + self._world.loop.time()) * 1000)

    async def write(self, writer: GatewayId, claim: Claim | None, work: Work[T]) -> T:
        await self._dawdle()
        if self._world.chance(self.weather.again):
            self._connection.execute("BEGIN")
            try:
                self._run(work)
            finally:
                self._connection.execute("ROLLBACK")
            await self._dawdle()
        result = self._commit(writer, claim, work)
        await self._dawdle()
        return result

    async def read(self, work: Work[T]) -> T:
        await self._dawdle()
        return self.look(work)

    def look(self, work: Work[T]) -> T:
        """Read at once, from outside of the world."""
        self._connection.execute("BEGIN")
        try:
            return self._run(work)
        finally:
            self._connection.execute("ROLLBACK")

    def _commit(self, writer: GatewayId, claim: Claim | None, work: Work[T]) -> T:
        watched = self.ledger.watched(work, claim)
        self._connection.execute("BEGIN")
        try:
            result, state = self._run(watched)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        self.ledger.committed(writer, claim, state, self.now_ms())
        return result

    def _run(self, work: Work[T]) -> T:
        return driven(work, self._connection, Seals(_MASTER))

    async def _dawdle(self) -> None:
        if self._world.chance(self.weather.slow):
            await self.process.sleep(self._world.rng.random() * self.weather.slow_s)

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            await asyncio.Event().wait()


class SimulatedDatabase:
    """A gateway's way to the server."""

    def __init__(self, server: StoreServer, process: Process, gateway: GatewayId) -> None:
        self._server = server
        self._process = process
        self._gateway = gateway

    async def write(self, work: Work[T]) -> T:
        server, claim = self._server, _claim.get()
        return await self._call(lambda: server.write(self._gateway, claim, work))

    async def read(self, work: Work[T]) -> T:
        server = self._server
        return await self._call(lambda: server.read(work))

    async def scrub(self) -> bool:
        """There are no files."""
        return True

    async def close(self) -> None:
        """There is nothing to close at this end."""

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        server = self._server
        return await call(self._process, server.process, lambda: server.group, work, seconds=_ANSWER_S, late=_SILENT)


class SimulatedStore(SqlSessionStore):
    """The store's own transactions. What a write claims to be is told to the ledger, which sees what it was."""

    async def append(self, turn: TurnRecord, event: TurnEvent) -> None:
        with _claiming(Write(turn.id, turn.epoch)):
            await super().append(turn, event)

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        with _claiming(Write(turn.id, turn.epoch)):
            await super().finish(turn, ending, tokens, events)

    async def book(self, kept: KeptFor) -> None:
        with _claiming(kept):
            await super().book(kept)

    async def beat(self, owner: GatewayId, lease_s: float) -> Mapping[TurnId, Halt]:
        with _claiming(Beat(owner, lease_s)):
            return await super().beat(owner, lease_s)


@contextmanager
def _claiming(claim: Claim) -> Iterator[None]:
    token = _claim.set(claim)
    try:
        yield
    finally:
        _claim.reset(token)
