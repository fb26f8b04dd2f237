"""Writing behind: pages that filled are copied out of the pool when there is time, at most so fast, and kept.

Owns what waits and what is under way, both bounded. A page that is evicted before its turn is dropped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from runtime.clock import Clock
from runtime.domain.readers import Reader
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Copied, Filled, Frame
from runtime.domain.tiers import Backlog, Wanted, wanted_of
from runtime.ids import PageId

# What the engine copies between two of its steps, and what is in memory on its way to a store.
_BATCH_BYTES = 8 << 20
_BATCH_PAGES = 16
_BACKLOG_PAGES = 16_384

Keep = Callable[[Frame | None, Wanted], Awaitable[bool]]


class WriteBehind:
    """`copy` asks the engine for pages, whose content comes by `copied`; `keep` puts one away, or notes who uses one
    that is `kept` already, and says whether it need not be tried again. It ends in time. Not more than `bytes_per_s` of
    pages, on average."""

    def __init__(
        self,
        spec: ModelSpec,
        bytes_per_s: float,
        clock: Clock,
        copy: Callable[[tuple[PageId, ...]], None],
        kept: Callable[[PageId], bool],
        keep: Keep,
    ) -> None:
        self.missed = 0
        self._tokens = spec.page_tokens
        self._batch = max(min(_BATCH_PAGES, _BATCH_BYTES // spec.page_bytes), 1)
        self._page_s = spec.page_bytes / bytes_per_s
        self._clock = clock
        self._copy = copy
        self._kept = kept
        self._keep = keep
        self._backlog = Backlog(_BACKLOG_PAGES)
        self._wake = asyncio.Event()
        self._asked: asyncio.Future[tuple[Copied, ...]] | None = None
        self._putting: dict[PageId, Wanted] = {}

    @property
    def waiting(self) -> int:
        """Pages that are not put away yet."""
        return len(self._backlog) + len(self._putting)

    @property
    def dropped(self) -> int:
        """Pages that found no room in the backlog, or were evicted before their turn."""
        return self._backlog.dropped + self.missed

    def filled(self, filled: Filled, lacks: Callable[[Wanted], bool]) -> None:
        """Write behind those of the pages that are lacking."""
        self._backlog.add(each for each in wanted_of(filled) if not self._is_put(each) and lacks(each))
        if len(self._backlog):
            self._wake.set()

    def forget(self, reader: Reader) -> None:
        """Write nothing more of what only this reader has used, but for what is under way."""
        self._backlog.forget(reader)

    def copied(self, copied: tuple[Copied, ...]) -> None:
        if copied and self._asked is not None and not self._asked.done():
            self._asked.set_result(copied)

    async def run(self, pause: Callable[[], float]) -> None:
        """Until cancelled. `pause` says for how many seconds nothing may be put away."""
        while True:
            await self._wake.wait()
            if (seconds := pause()) > 0:
                await self._clock.sleep(seconds)
                continue
            taken = self._backlog.take(self._batch)
            if not len(self._backlog):
                self._wake.clear()
            if taken:
                await self._put(taken)

    async def _put(self, taken: dict[PageId, Wanted]) -> None:
        began = self._clock.now()
        self._putting = taken
        known = [page for page in taken if self._kept(page)]
        frames = {frame.page: frame for frame in await self._copies(tuple(page for page in taken if page not in known))}
        pages = [*known, *frames]
        done = await asyncio.gather(*(self._keep(frames.get(page), taken[page]) for page in pages))
        self._putting = {}
        if not all(done):
            self._backlog.put_back({page: taken[page] for page, put in zip(pages, done, strict=True) if not put})
            self._wake.set()
        await self._clock.sleep(max(began + len(frames) * self._page_s - self._clock.now(), 0))

    async def _copies(self, pages: tuple[PageId, ...]) -> list[Frame]:
        if not pages:
            return []
        self._asked = asyncio.get_running_loop().create_future()
        self._copy(pages)
        return list(self._frames(await self._asked))

    def _is_put(self, wanted: Wanted) -> bool:
        """Whether just that is under way."""
        known = self._putting.get(wanted.page)
        return known is not None and wanted.readers <= known.readers

    def _frames(self, copied: Iterable[Copied]) -> Iterable[Frame]:
        for each in copied:
            if each.payload is None:
                self.missed += 1
            else:
                yield Frame(each.page, self._putting[each.page].index, self._tokens, each.payload)
