"""Writing behind: pages that filled are copied out of the pool when there is time, at most so fast, and kept.

Owns what waits and what is under way, both bounded. A page that is evicted before its turn is dropped.
"""

import asyncio
from collections.abc import Callable, Iterable

from runtime.clock import Clock
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Copied, Filled, Frame
from runtime.domain.tiers import Backlog, Wanted, wanted_of
from runtime.ids import PageId

# What the engine copies between two of its steps, and what is in memory on its way to a store.
_BATCH_BYTES = 8 << 20
_BATCH_PAGES = 16
_BACKLOG_PAGES = 16_384

Keep = Callable[[Frame, Wanted], bool]


class WriteBehind:
    """`copy` asks the engine for pages, whose content comes by `copied`; `keep` puts one away, says whether it did, and
    may block, so it runs on `run_blocking`. Not more than `bytes_per_s` of pages, on average."""

    def __init__(
        self,
        spec: ModelSpec,
        bytes_per_s: float,
        clock: Clock,
        copy: Callable[[tuple[PageId, ...]], None],
        keep: Keep,
        run_blocking: Callable[[Callable[[], bool]], "asyncio.Future[bool]"],
    ) -> None:
        self.missed = 0
        self._tokens = spec.page_tokens
        self._batch = max(min(_BATCH_PAGES, _BATCH_BYTES // spec.page_bytes), 1)
        self._page_s = spec.page_bytes / bytes_per_s
        self._clock = clock
        self._copy = copy
        self._keep = keep
        self._run_blocking = run_blocking
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

    def filled(self, filled: Filled, lacks: Callable[[PageId], bool]) -> None:
        """Write behind those of the pages that are lacking."""
        wanted = wanted_of(filled.pages, filled.first, filled.parent, filled.salt)
        self._backlog.add(each for each in wanted if each.page not in self._putting and lacks(each.page))
        if len(self._backlog):
            self._wake.set()

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
        self._asked = asyncio.get_running_loop().create_future()
        self._copy(tuple(taken))
        frames = list(self._frames(await self._asked))
        kept = await asyncio.gather(*(self._run_blocking(self._job(frame, taken[frame.page])) for frame in frames))
        self._putting = {}
        if not all(kept):
            failed = [frame.page for frame, done in zip(frames, kept, strict=True) if not done]
            self._backlog.put_back({page: taken[page] for page in failed})
            self._wake.set()
        await self._clock.sleep(max(began + len(frames) * self._page_s - self._clock.now(), 0))

    def _frames(self, copied: Iterable[Copied]) -> Iterable[Frame]:
        for each in copied:
            if each.payload is None:
                self.missed += 1
            else:
                yield Frame(each.page, self._putting[each.page].index, self._tokens, each.payload)

    def _job(self, frame: Frame, wanted: Wanted) -> Callable[[], bool]:
        return lambda: self._keep(frame, wanted)
