"""What a gateway does about erased sessions while workers come, go and do not answer."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.clock import LoopClock
from runtime.domain.erasure import Erasure
from runtime.domain.messages import View, Worker
from runtime.domain.steps import Forgotten
from runtime.errors import Unavailable
from runtime.ids import BootId, SessionId, WorkerId
from runtime.roles.erasing import ErasingRole, ErasingSettings
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.talking import MASTER, TENANT, session

MANY = 48
SILENCE_S = 0.2


@dataclass
class Keepers:
    """Two workers: one takes its time and then does not answer."""

    told: list[SessionId] = field(default_factory=list)

    def keeper(self, worker: Worker) -> "Keeper":
        return Keeper(self, silent=worker.id == "silent")


@dataclass
class Keeper:
    all: Keepers
    silent: bool

    async def forget(self, session: SessionId) -> Forgotten:
        if self.silent:
            await asyncio.sleep(SILENCE_S)
            raise Unavailable("it does not answer")
        self.all.told.append(session)
        return Forgotten(session, 1, 0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlSessionStore]:
    database = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
    await database.open()
    yield SqlSessionStore(database)
    await database.close()


async def test_a_worker_that_never_answers_keeps_no_other_from_hearing(store: SqlSessionStore) -> None:
    for number in range(MANY):
        await store.erase(TENANT, await session(store, f"sess-{number}"))
    keepers, left = Keepers(), list[SessionId]()
    role = ErasingRole(store, keepers, _view, left.append, LoopClock(), ErasingSettings(look_s=0.01))
    async with asyncio.TaskGroup() as group, asyncio.timeout(MANY * SILENCE_S / 2):
        looking = group.create_task(role.run())
        while await answered(store) < MANY:  # noqa: ASYNC110 - told by no event
            await asyncio.sleep(0.01)
        looking.cancel()
    assert len(keepers.told) == len(left) == MANY, "who has answered is not told again"
    assert not [each for each in await store.erasures(None, MANY) if dropped(each)["silent"] is not None]


def dropped(erased: Erasure) -> dict[str, int | None]:
    return {each.worker: each.dropped for each in erased.workers}


async def answered(store: SqlSessionStore) -> int:
    """Of how many sessions there is a receipt of the worker that is well."""
    return sum(dropped(each).get("well") is not None for each in await store.erasures(None, MANY))


def _view() -> View:
    workers = [
        Worker(WorkerId(name), BootId(f"boot-{name}"), "decode", "host:1", "model", "kv", "serves", 64, 16, "cpu x1")
        for name in ("silent", "well")
    ]
    return View(1, 1, tuple(workers))
