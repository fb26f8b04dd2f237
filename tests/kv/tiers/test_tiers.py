"""Both tiers behind a pool, over the threads that read and write: what is found, in time or not at all."""

import asyncio
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.clock import LoopClock
from runtime.domain import holdings
from runtime.domain.pages import Occupancy
from runtime.domain.steps import Copied, Filled, Load, StepOutput
from runtime.domain.tiers import Tier
from runtime.errors import StartError, Unavailable
from runtime.ids import PageId, SessionId
from runtime.kv.tiers import tiers as tiers_module
from runtime.kv.tiers.arena import Arena
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import Objects, open_objects
from runtime.kv.tiers.tiers import PageTiers, TierSettings
from tests.kv.tiers.pages import CODEC, PUBLIC, SALT, SPEC, chain, frame, ident, parent, payload, wanted
from tests.kv.tiers.test_cold import Failing, files

LOAD = Load(0, 0, 0, 0, Occupancy(0, 0, 0, 0))
FAST = TierSettings(least_tokens=SPEC.page_tokens, patience_s=5.0, write_bytes_per_s=1 << 30)


class Pool:
    """Stands for the engine: what its pool holds, and how often it was asked."""

    def __init__(self) -> None:
        self.tiers: PageTiers
        self.asked: list[tuple[PageId, ...]] = []
        self.evicted: set[PageId] = set()
        self.held: dict[holdings.Tier, set[PageId]] = defaultdict(set)
        self._payloads = {ident(number): payload(number) for number in range(64)}

    def copy(self, pages: tuple[PageId, ...]) -> None:
        self.asked.append(pages)
        copied = tuple(Copied(page, None if page in self.evicted else self._payloads[page]) for page in pages)
        asyncio.get_running_loop().call_soon(self.tiers.on_step, step(copied=copied))

    def changed(self, stored: Sequence[PageId], removed: Sequence[PageId], tier: holdings.Tier) -> None:
        self.held[tier] -= set(removed)
        self.held[tier] |= set(stored)

    def fills(self, count: int, first: int = 0, session: str | None = None) -> None:
        pages, whose = tuple(chain(first + count)[first:]), None if session is None else SessionId(session)
        self.tiers.on_step(step(filled=(Filled(pages, first, parent(first), SALT, whose),)))


def step(filled: tuple[Filled, ...] = (), copied: tuple[Copied, ...] = ()) -> StepOutput:
    return StepOutput(1, (), LOAD, filled=filled, copied=copied)


def cold_tier(objects: Objects) -> ColdTier:
    return ColdTier(objects, CODEC, 1 << 30, 3600.0)


@asynccontextmanager
async def behind(
    host: Arena | None = None, cold: ColdTier | None = None, settings: TierSettings = FAST
) -> AsyncIterator[Pool]:
    pool = Pool()
    pool.tiers = PageTiers(SPEC, host, cold, settings, LoopClock(), pool.copy, pool.changed)
    async with pool.tiers.running():
        yield pool


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends, "it did not come true"
        await asyncio.sleep(0.005)


async def loaded(tiers: PageTiers, count: int, start: int = 0) -> list[tuple[int, Tier]]:
    """The place and the tier of each page that came, whose content is checked."""
    found = []
    async for page, tier in tiers.load(chain(count), start, SALT).pages():
        assert bytes(page.payload) == payload(page.index)
        found.append((page.index, tier))
    return found


class Slow(Failing):
    """A store that does not answer a reader until it is let go."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.go = threading.Event()
        self.reading = 0

    def get(self, name: str) -> memoryview:
        self.reading += 1
        self.go.wait(30)
        return super().get(name)


async def test_pages_that_fill_are_written_behind_and_loaded_in_order(tmp_path: Path) -> None:
    async with behind(cold=cold_tier(open_objects(str(tmp_path), 5.0))) as pool:
        pool.fills(20)
        await until(lambda: pool.tiers.match(chain(20), 0) == 20)
        assert await loaded(pool.tiers, 20, start=3) == [(number, Tier.COLD) for number in range(3, 20)]
        assert max(map(len, pool.asked)) <= 16, "the engine copies only some at a time"
        pool.fills(20)
        await asyncio.sleep(0.05)
        assert sum(map(len, pool.asked)) == 20, "what is there is not written again"


async def test_the_nearer_tier_answers_and_keeps_what_came_from_the_farther(tmp_path: Path) -> None:
    cold = cold_tier(open_objects(str(tmp_path), 5.0))
    for number in range(4):
        cold.write(frame(number), wanted(number))
    async with behind(Arena(CODEC, 1 << 20), cold) as pool:
        assert await loaded(pool.tiers, 4) == [(number, Tier.COLD) for number in range(4)]
        assert await loaded(pool.tiers, 4) == [(number, Tier.HOST) for number in range(4)]


async def test_loading_ends_at_the_first_gap(tmp_path: Path) -> None:
    cold = cold_tier(open_objects(str(tmp_path), 5.0))
    for number in (0, 1, 3, 4):
        cold.write(frame(number), wanted(number))
    async with behind(cold=cold) as pool:
        assert pool.tiers.match(chain(5), 0) == 2
        assert await loaded(pool.tiers, 5) == [(0, Tier.COLD), (1, Tier.COLD)]


async def test_too_little_is_not_worth_the_way(tmp_path: Path) -> None:
    cold = cold_tier(open_objects(str(tmp_path), 5.0))
    for number in range(3):
        cold.write(frame(number), wanted(number))
    settings = TierSettings(2 * SPEC.page_tokens, 5.0, 1 << 30)
    async with behind(cold=cold, settings=settings) as pool:
        assert [pool.tiers.match(chain(3), start) for start in range(4)] == [3, 3, 2, 3]


async def test_a_page_that_was_evicted_before_its_turn_is_not_written_and_told(tmp_path: Path) -> None:
    async with behind(cold=cold_tier(open_objects(str(tmp_path), 5.0))) as pool:
        pool.evicted = {ident(1)}
        pool.fills(3)
        await until(lambda: pool.tiers.waiting == 0)
        assert pool.tiers.match(chain(3), 0) == 1
        assert pool.tiers.reports()[-1].failures == (("not written", 1),)


async def test_a_slow_store_is_given_up_in_time_and_left_alone(tmp_path: Path) -> None:
    store = Slow(open_objects(str(tmp_path), 5.0))
    cold = cold_tier(store)
    for number in range(4):
        cold.write(frame(number), wanted(number))
    settings = TierSettings(SPEC.page_tokens, 0.1, 1 << 30)
    async with behind(cold=cold, settings=settings) as pool:
        try:
            began = time.monotonic()
            assert await loaded(pool.tiers, 4) == []
            assert time.monotonic() - began < 5
            assert pool.tiers.match(chain(4), 0) == 0, "nobody else waits for it now"
            assert dict(pool.tiers.reports()[0].failures) == {"slow": 1}
        finally:
            store.go.set()


async def test_nobody_waits_for_a_store_that_hangs_who_finds_his_pages_in_memory(tmp_path: Path) -> None:
    store, host = Slow(open_objects(str(tmp_path), 5.0)), Arena(CODEC, 1 << 20)
    cold = cold_tier(store)
    for number in range(8, 40):
        cold.write(frame(number), wanted(number))
    for number in range(4):
        host.put(frame(number), parent(number), PUBLIC)
    async with behind(host, cold) as pool:
        hanging = pool.tiers.load(chain(40), 8, SALT)
        try:
            await until(lambda: store.reading == 4)
            async with asyncio.timeout(2.5):
                assert await loaded(pool.tiers, 4) == [(number, Tier.HOST) for number in range(4)]
        finally:
            store.go.set()
            hanging.close()


async def test_whoever_is_cancelled_while_a_page_is_read_is_cancelled(tmp_path: Path) -> None:
    store = Slow(open_objects(str(tmp_path), 5.0))
    cold = cold_tier(store)
    cold.write(frame(0), wanted(0))
    async with behind(cold=cold) as pool, asyncio.TaskGroup() as group:
        waiting = group.create_task(loaded(pool.tiers, 1))
        try:
            await until(lambda: store.reading == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        finally:
            store.go.set()


async def test_reading_begins_before_there_is_room_but_not_all_of_it(tmp_path: Path) -> None:
    store = Slow(open_objects(str(tmp_path), 5.0))
    cold = cold_tier(store)
    for number in range(40):
        cold.write(frame(number), wanted(number))
    async with behind(cold=cold) as pool:
        loading = pool.tiers.load(chain(40), 0, SALT)
        await until(lambda: store.reading > 0)
        store.go.set()
        await asyncio.sleep(0.1)
        assert store.reading == 8, "the window is full, and nobody takes from it"
        found = [page.index async for page, _ in loading.pages()]
        assert found == list(range(40))
        others = [pool.tiers.load(chain(40), 0, SALT) for _ in range(12)]
        assert sum(len(each._reading) for each in others) == 64, "all that wait share a window"
        for each in others:
            each.close()


async def test_a_page_that_was_kept_as_another_place_of_its_sequence_is_not_given_out(tmp_path: Path) -> None:
    cold = cold_tier(open_objects(str(tmp_path), 5.0))
    cold.write(frame(0), wanted(0))
    cold.write(replace(frame(1), index=7), wanted(1))
    async with behind(cold=cold) as pool:
        assert await loaded(pool.tiers, 2) == [(0, Tier.COLD)]


async def test_what_ends_a_worker_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StartError):
        async with behind(cold=cold_tier(open_objects(str(tmp_path), 5.0))):
            raise StartError("the mesh refused it")


async def test_a_load_that_is_closed_brings_nothing_more(tmp_path: Path) -> None:
    cold = cold_tier(open_objects(str(tmp_path), 5.0))
    for number in range(20):
        cold.write(frame(number), wanted(number))
    async with behind(cold=cold) as pool:
        loading = pool.tiers.load(chain(20), 0, SALT)
        pages = loading.pages()
        await anext(pages)
        loading.close()
        assert [page.index async for page, _ in pages] == []


async def test_writing_keeps_to_its_rate(tmp_path: Path) -> None:
    settings = TierSettings(SPEC.page_tokens, 5.0, write_bytes_per_s=SPEC.page_bytes * 80)
    async with behind(cold=cold_tier(open_objects(str(tmp_path), 5.0)), settings=settings) as pool:
        began = time.monotonic()
        pool.fills(40)
        await until(lambda: pool.tiers.match(chain(40), 0) == 40)
        # Of three batches the pauses after two: 32 pages at 80 a second.
        assert time.monotonic() - began > 0.38


async def test_while_nothing_can_be_written_pages_wait_in_the_pool_and_then_are_written(tmp_path: Path) -> None:
    now = [0.0]
    store = Failing(open_objects(str(tmp_path), 5.0))
    store.broken = "No space left on device"
    async with behind(cold=ColdTier(store, CODEC, 1 << 30, 3600.0, lambda: now[0])) as pool:
        pool.fills(64)
        await until(lambda: pool.tiers.reports()[0].trouble != "")
        await asyncio.sleep(0.05)
        assert sum(map(len, pool.asked)) <= 16, "no more than one batch is in memory"
        store.broken = ""
        now[0] = 100.0
        await until(lambda: pool.tiers.match(chain(64), 0) == 64 and pool.tiers.waiting == 0)
        await until(lambda: pool.tiers.reports()[0].trouble == "")


async def test_what_comes_into_a_tier_and_leaves_it_is_told(tmp_path: Path) -> None:
    store = open_objects(str(tmp_path), 5.0)
    cold_tier(store).write(frame(40), wanted(40))
    async with behind(Arena(CODEC, 4 * CODEC.page_bytes), cold_tier(store)) as pool:
        pool.fills(6)
        there = {ident(number) for number in (*range(6), 40)}
        await until(lambda: pool.held[holdings.Tier.COLD] == there)
        await until(lambda: len(pool.held[holdings.Tier.HOST]) == 4)
        pool.fills(2, 8, "sess-1")
        await until(lambda: len(pool.held[holdings.Tier.COLD]) == 9)
        await pool.tiers.forget(SessionId("sess-1"))
        await until(lambda: pool.held[holdings.Tier.COLD] == there)
        assert not pool.held[holdings.Tier.HOST] & {ident(8), ident(9)}


class Stuck(Failing):
    """A store of which no writer comes back, until it is let go."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.go = threading.Event()
        self.hanging = 0

    def create(self, name: str, content: bytes) -> None:
        self.hanging += 1
        self.go.wait(60)
        super().create(name, content)


async def test_a_store_that_hangs_for_ever_stops_neither_the_memory_nor_the_end_of_the_worker(tmp_path: Path) -> None:
    store = Stuck(open_objects(str(tmp_path), 5.0))
    host = Arena(CODEC, 1 << 20)
    settings = TierSettings(SPEC.page_tokens, 0.02, 1 << 30)
    try:
        async with behind(host, cold_tier(store), settings) as pool:
            pool.fills(16)
            await until(lambda: pool.tiers.reports()[-1].trouble == "writing: it does not answer in time")
            pool.fills(16, 16)
            await until(lambda: all(ident(number) in host for number in range(32)))
            assert store.hanging == 2, "who hangs is not joined by others"
            ended = time.monotonic()
        assert time.monotonic() - ended < 5
    finally:
        store.go.set()


async def test_a_page_that_hangs_for_ever_keeps_no_process_from_its_end(tmp_path: Path) -> None:
    """A pipe in its place: whoever opens it waits until somebody writes."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HANGING, str(tmp_path))
    async with asyncio.timeout(60):
        assert await process.wait() == 0


HANGING = """
import asyncio, os, sys
from pathlib import Path
from runtime.kv.tiers.tiers import TierSettings
from tests.kv.tiers.pages import *
from tests.kv.tiers.test_tiers import behind, cold_tier, open_objects
async def main():
    cold = cold_tier(open_objects(sys.argv[1], 5.0))
    cold.write(frame(0), wanted(0))
    (file,) = Path(sys.argv[1]).rglob("*-0")
    file.unlink()
    os.mkfifo(file)
    async with behind(cold=cold, settings=TierSettings(SPEC.page_tokens, 0.2, 1 << 30)) as pool:
        assert [page async for page in pool.tiers.load(chain(1), 0, SALT).pages()] == []
        assert pool.tiers.reports()[0].trouble == "reading: it does not answer in time"
asyncio.run(main())
"""


async def test_what_is_erased_is_dropped_from_all_tiers_and_counted(tmp_path: Path) -> None:
    host = Arena(CODEC, 1 << 20)
    async with behind(host, cold_tier(open_objects(str(tmp_path), 5.0))) as pool:
        pool.fills(6, session="sess-1")
        pool.fills(2, session="sess-2")
        pool.fills(1)
        await until(lambda: pool.tiers.waiting == 0)
        assert await pool.tiers.forget(SessionId("sess-1")) == (8, 4)
        assert pool.tiers.match(chain(6), 0) == 2
        assert await pool.tiers.forget(SessionId("sess-1")) == (0, 0)
        assert await pool.tiers.forget(SessionId("sess-2")) == (2, 2)
        assert await loaded(pool.tiers, 6) == [(0, Tier.HOST)], "somebody without a session has used it"


async def test_what_waits_to_be_written_of_an_erased_session_never_is(tmp_path: Path) -> None:
    store = Stuck(open_objects(str(tmp_path), 5.0))
    async with behind(cold=cold_tier(store)) as pool, asyncio.TaskGroup() as group:
        pool.fills(40, session="sess-1")
        await until(lambda: store.hanging == 2)
        forgetting = group.create_task(pool.tiers.forget(SessionId("sess-1")))
        await asyncio.sleep(0.1)
        assert not forgetting.done(), "as long as something of it is being written"
        store.go.set()
        await forgetting
        await until(lambda: pool.tiers.waiting == 0)
        assert files(tmp_path) == []
        assert sum(map(len, pool.asked)) == 16


async def test_an_erasure_that_a_store_delays_is_asked_for_again_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Failing(open_objects(str(tmp_path), 5.0))
    async with behind(Arena(CODEC, 1 << 20), cold_tier(store)) as pool:
        pool.fills(3, session="sess-1")
        await until(lambda: pool.tiers.waiting == 0)
        store.broken = "the bucket is gone"
        with pytest.raises(Unavailable):
            await pool.tiers.forget(SessionId("sess-1"))
        store.broken = ""
        go = threading.Event()
        monkeypatch.setattr(tiers_module, "_FORGET_S", 0.05)
        monkeypatch.setattr(store, "list", lambda: iter([*Failing.list(store)]) if go.wait(30) else iter(()))
        with pytest.raises(Unavailable):
            await pool.tiers.forget(SessionId("sess-1"))
        go.set()
        await asyncio.sleep(0.2)
        assert await pool.tiers.forget(SessionId("sess-1")) == (6, 0)
