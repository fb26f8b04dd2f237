"""Those who watch sessions: what a lost wake-up costs them, and how many there may be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from runtime.domain.notices import Change, Notice
from runtime.errors import ResourceExhausted
from runtime.roles.watching import Watchers
from runtime.store.bells import Bells
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.talking import MASTER, TENANT, session


class Deaf(Bells):
    def ring(self, topic: str) -> None:
        """Nobody hears it."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    kept = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
    await kept.open()
    yield kept
    await kept.close()


@pytest.mark.parametrize(("bells", "look_s"), [(Deaf(), 0.01), (Bells(), 60.0)])
async def test_what_happened_is_seen_though_a_wake_up_is_lost_and_at_once_when_it_is_not(
    database: SqliteDatabase, bells: Bells, look_s: float
) -> None:
    store = SqlSessionStore(database, bells)
    sess = await session(store)
    async with asyncio.timeout(20), aclosing(Watchers(store, look_s).watch(TENANT, sess, 0)) as watched:
        for number in range(1, 4):
            notice, _ = await asyncio.gather(anext(watched), store.update(TENANT, sess, Change(ttl_ms=1), None))
            assert isinstance(notice, Notice)
            assert notice.number == number


async def test_so_many_watch_at_a_time_and_no_more(database: SqliteDatabase) -> None:
    store = SqlSessionStore(database)
    sess = await session(store)
    watchers = Watchers(store, most=1)
    async with aclosing(watchers.watch(TENANT, sess, None)) as one:
        await anext(one)
        with pytest.raises(ResourceExhausted):
            await anext(watchers.watch(TENANT, sess, None))
    async with aclosing(watchers.watch(TENANT, sess, None)) as again:
        await anext(again)
