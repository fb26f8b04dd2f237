"""The page directory: what a worker tells, and what a gateway makes of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from runtime.clock import LoopClock
from runtime.domain.holdings import Changes, Moved, Tier
from runtime.domain.messages import View, Worker
from runtime.errors import Unavailable
from runtime.ids import BootId, PageId, WorkerId
from runtime.roles.pages import BEAT_S, DirectoryRole, PagesRole
from runtime.router.index import PageIndex, names_of
from tests.roles.virtual import in_virtual_time, now, settle

A = Worker(WorkerId("a"), BootId("boot-a"), "decode", "a:1", "m", "k", "s", 96, 4, "cpu x1")
PAGES = [PageId(bytes([number]) * 16) for number in range(1, 41)]
Stream = AsyncGenerator[Changes, None]


class Sources:
    """Streams of one worker, each as the next of `streams` makes it; notes from where each was asked for."""

    def __init__(self, *streams: Callable[[int], Stream]) -> None:
        self.streams = list(streams)
        self.asked: list[int] = []

    def pages(self, address: str, role: str, after: int) -> Stream:
        self.asked.append(after)
        return self.streams.pop(0)(after) if self.streams else _silent()


async def _silent() -> Stream:
    await asyncio.Event().wait()
    yield Changes(0, 0)


def said(*changes: Changes, then: Exception | None = None) -> Callable[[int], Stream]:
    async def stream(_after: int) -> Stream:
        for each in changes:
            yield each
        if then is not None:
            raise then
        await asyncio.Event().wait()

    return stream


def stored(after: int, until: int, *pages: PageId, tier: Tier = Tier.POOL, reset: bool = False) -> Changes:
    return Changes(after, until, (Moved(tier, pages),), reset)


@asynccontextmanager
async def following(sources: object, view: View) -> AsyncGenerator[tuple[PageIndex, list[View]], None]:
    """A directory that follows whoever is in the view, the last of the list."""
    index, views = PageIndex(), [view]
    role = DirectoryRole(sources, index, LoopClock())  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(role.run(lambda: views[-1]))
        await settle()
        yield index, views
        running.cancel()


def prefix(index: PageIndex, tiers: int = Tier.POOL, boot: BootId = A.boot) -> int:
    return int(index.prefix(names_of(PAGES), index.known([boot]), tiers)[0])


@in_virtual_time
async def test_what_a_worker_holds_is_known_a_moment_later_and_what_it_drops_is_forgotten() -> None:
    worker = PagesRole(LoopClock())
    worker.changed(PAGES[:3], ())

    class Direct:
        def pages(self, address: str, role: str, after: int) -> Stream:
            return worker.changes(after)

    async with following(Direct(), View(1, 1, (A,))) as (index, _):
        assert prefix(index) == 3
        worker.changed(PAGES[3:8], ())
        worker.changed((), PAGES[6:8])
        await asyncio.sleep(0.5)
        assert (prefix(index), index.pages) == (6, 6)


@in_virtual_time
async def test_a_worker_that_holds_still_is_not_silent() -> None:
    changes = PagesRole(LoopClock()).changes(0)
    assert await anext(changes) == Changes(0, 0)
    assert now() == BEAT_S
    await changes.aclose()


@in_virtual_time
async def test_after_a_gap_a_watcher_begins_again_from_what_it_knows() -> None:
    first = said(stored(0, 2, *PAGES[:2], reset=True), stored(3, 4, *PAGES[5:]))
    second = said(stored(2, 4, *PAGES[2:6]))
    sources = Sources(first, second)
    async with following(sources, View(1, 1, (A,))) as (index, _):
        await asyncio.sleep(3)
        assert (sources.asked, prefix(index), index.pages) == ([0, 2], 6, 6)


@in_virtual_time
async def test_a_reset_makes_void_what_was_known() -> None:
    sources = Sources(said(stored(0, 5, *PAGES[:9], reset=True), stored(0, 9, *PAGES[:2], reset=True)))
    async with following(sources, View(1, 1, (A,))) as (index, _):
        assert (prefix(index), index.pages) == (2, 2)


@in_virtual_time
async def test_a_stream_that_breaks_or_falls_silent_is_opened_again() -> None:
    sources = Sources(said(then=Unavailable("cut")), said(), said(stored(0, 1, *PAGES[:4], reset=True)))
    async with following(sources, View(1, 1, (A,))) as (index, _):
        await asyncio.sleep(2)
        assert sources.asked == [0, 0]
        await asyncio.sleep(20)
        assert (sources.asked, prefix(index)) == ([0, 0, 0], 4)


@in_virtual_time
async def test_who_leaves_the_view_holds_nothing() -> None:
    sources = Sources(said(stored(0, 1, *PAGES[:4], reset=True)))
    async with following(sources, View(1, 1, (A,))) as (index, views):
        assert index.pages == 4
        views.append(View(1, 2))
        await asyncio.sleep(1)
        assert (prefix(index), index.pages) == (0, 0)


@in_virtual_time
async def test_of_each_worker_it_is_known_what_is_in_which_tier_until_it_leaves() -> None:
    first = stored(0, 1, *PAGES[:2], reset=True)
    more = Changes(1, 2, (Moved(Tier.HOST, tuple(PAGES[:4])), Moved(Tier.COLD, tuple(PAGES[:9]))))
    sources = Sources(said(first, more, Changes(2, 3, (Moved(Tier.COLD, (), tuple(PAGES[6:9])),))))
    async with following(sources, View(1, 1, (A,))) as (index, views):
        tiers = (Tier.POOL, Tier.POOL | Tier.HOST, Tier.POOL | Tier.HOST | Tier.COLD)
        assert [prefix(index, each) for each in tiers] == [2, 4, 6]
        assert index.tiers == tiers[-1]
        views.append(View(1, 2, ()))
        await asyncio.sleep(1.0)
        assert [prefix(index, each) for each in tiers] == [0, 0, 0]
