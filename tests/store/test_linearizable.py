"""Whatever clients do to a session at the same time, they are told what a store without concurrency could have told."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

import pytest

from runtime.domain.sessions import Branch, Ending, Halt, Key, Session, TurnEvent, TurnRecord
from runtime.errors import StaleAttempt
from runtime.ids import SessionId, TenantId, TurnId
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database
from tests.scale import scaled
from tests.store.linear import stuck
from tests.store.recording import recorded
from tests.store.sequential import Session as Model
from tests.store.sequential import step
from tests.store.talking import MASTER, session

SEEDS = scaled(5, 100)


@pytest.fixture
async def gateways(kept: Database, request: pytest.FixtureRequest) -> AsyncIterator[tuple[SessionStore, ...]]:
    """Each gateway's store: two on one PostgreSQL; on SQLite there is one gateway."""
    here = SqlSessionStore(kept)
    if isinstance(kept, SqliteDatabase):
        yield (here,)
        return
    from runtime.store.postgres import PostgresDatabase

    other = PostgresDatabase(request.getfixturevalue("server"), MASTER)
    await other.open()
    yield here, SqlSessionStore(other)
    await other.close()


@pytest.mark.timeout(600)
async def test_every_recorded_history_is_linearizable(gateways: tuple[SessionStore, ...]) -> None:
    """Invariants 1, 2, 4 and 10 as clients see them. Sessions share nothing, so the history of each is judged alone."""
    for seed in range(SEEDS):
        pair = [2 * seed, 2 * seed + 1]
        sessions = [await session(gateways[0], f"sess-{each}") for each in pair]
        told = await asyncio.gather(*(recorded(gateways, *each) for each in zip(sessions, pair, strict=True)))
        for history in told:
            assert len(history.calls) > 50
            assert not stuck(history.calls, Model(), step), f"seed {seed}"


class Planted:
    """A store with a bug; `group` is for what it leaves for later."""

    def __init__(self, store: SessionStore, group: asyncio.TaskGroup, seed: int) -> None:
        self.store = store
        self.group = group
        self.chance = random.Random(seed)

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


class StaleHead(Planted):
    """Now and then it tells the head that was before."""

    last: tuple[Session, tuple[Branch, ...]] | None = None

    async def get(self, tenant: TenantId, session: SessionId) -> tuple[Session, tuple[Branch, ...]]:
        if self.last is None or self.chance.random() < 0.7:
            self.last = await self.store.get(tenant, session)
        return self.last


class ExpectsNothing(Planted):
    """It opens a turn whatever head was expected."""

    async def open(self, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool] | None:
        return await self.store.open(replace(turn, asked=replace(turn.asked, head_is_expected=False)), key)


class ForgetsKeys(Planted):
    """The same request under its key is another turn."""

    async def open(self, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool] | None:
        return await self.store.open(turn, None)


class LosesCancels(Planted):
    """It says that a turn will be stopped, and tells nobody."""

    async def halt(self, tenant: TenantId, session: SessionId, turn: TurnId, halt: Halt) -> TurnRecord:
        found = (await self.store.progress(tenant, session, turn, 0)).turn
        return found if found.ending or found.halt else replace(found, halt=halt)


class AcknowledgesTooEarly(Planted):
    """An end is told before it is written."""

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        self.group.create_task(self._finish(turn, ending, tokens, events))

    async def _finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        with suppress(StaleAttempt):
            await self.store.finish(turn, ending, tokens, events)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kept", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bug", [StaleHead, ExpectsNothing, ForgetsKeys, LosesCancels, AcknowledgesTooEarly])
async def test_a_planted_bug_is_found(store: SessionStore, bug: type[Planted]) -> None:
    for seed in range(200):
        async with asyncio.TaskGroup() as group:
            planted = cast("SessionStore", bug(store, group, seed))
            history = await recorded((planted,), await session(store, f"sess-{seed}"), seed)
        if stuck(history.calls, Model(), step):
            return
    pytest.fail(f"{bug.__name__} was not found")
