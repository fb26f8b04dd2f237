"""The page directory: a worker tells what it holds, a gateway follows all workers and keeps the index.

Nothing waits for it: what it does not know yet, or any more, costs a placement that could have been better.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from runtime.clock import Clock
from runtime.domain.holdings import Changes, Holdings, Tier
from runtime.domain.messages import View, Worker
from runtime.errors import BatonError
from runtime.ids import BootId, PageId
from runtime.ports import PageSources
from runtime.router.index import PageIndex, names_of

# Changes are gathered for so long, and silence is broken after so long.
GATHER_S = 0.1
BEAT_S = 5.0
_SILENCE_S = 3 * BEAT_S
_LOOK_S = 0.25
_AGAIN_S = 1.0
_log = logging.getLogger(__name__)


class PagesRole:
    """What a worker holds, for those who follow it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holdings = Holdings()
        self._changed = asyncio.Event()

    def changed(self, stored: Sequence[PageId], removed: Sequence[PageId], tier: Tier = Tier.POOL) -> None:
        self._holdings.changed(stored, removed, tier)
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self, after: int) -> AsyncGenerator[Changes, None]:
        """All that a watcher lacks that knows up to `after`, and then every change; an empty one now and then."""
        while True:
            for changes in self._holdings.since(after):
                yield changes
                after = changes.until
            if after == self._holdings.number and not await self._news():
                yield Changes(after, after)
            else:
                await self._clock.sleep(GATHER_S)

    async def _news(self) -> bool:
        """Whether anything changed before it was time to say something anyway."""
        try:
            async with asyncio.timeout(BEAT_S):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True


class DirectoryRole:
    """Follows every worker of the view and keeps `index`."""

    def __init__(self, sources: PageSources, index: PageIndex, clock: Clock) -> None:
        self._sources = sources
        self._index = index
        self._clock = clock
        self._following: dict[BootId, asyncio.Task[None]] = {}

    async def run(self, view: Callable[[], View]) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                here = {worker.boot: worker for worker in view().workers}
                for boot in self._following.keys() - here.keys():
                    self._following.pop(boot).cancel()
                    self._index.forget(boot)
                for boot in here.keys() - self._following.keys():
                    self._following[boot] = group.create_task(self._follow(here[boot]))
                await self._clock.sleep(_LOOK_S)

    async def _follow(self, worker: Worker) -> None:
        """Until it leaves the view. After a gap, or when the stream broke, from what is known on."""
        after = 0
        while True:
            try:
                async with aclosing(self._sources.pages(worker.address, worker.role, after)) as stream:
                    after = await self._take(worker.boot, stream, after)
            except (BatonError, TimeoutError) as error:
                _log.info("pages are not followed: %s", error, extra={"worker": worker.id, "boot": worker.boot})
            await self._clock.sleep(_AGAIN_S)

    async def _take(self, boot: BootId, stream: AsyncGenerator[Changes, None], after: int) -> int:
        """Take in changes until one does not follow; returns up to which all are known."""
        while True:
            async with asyncio.timeout(_SILENCE_S):
                changes = await anext(stream, None)
            if changes is None or not (changes.reset or changes.after == after):
                return after
            if changes.reset:
                self._index.forget(boot)
            for moved in changes.moved:
                number = self._index.number(boot)
                self._index.removed(number, names_of(moved.removed), moved.tier)
                self._index.stored(number, names_of(moved.stored), moved.tier)
            after = changes.until
