"""`ports.Tiers`: what is behind the pool of one worker, the nearer tier first. Owns the threads that read and write.

Nothing here waits on the event loop, and nothing that befalls a tier leaves it as more than a page that is not there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from runtime.clock import Clock
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame, StepOutput
from runtime.domain.tiers import Tier, TierReport, Wanted
from runtime.ids import PageId
from runtime.kv.tiers.arena import Arena
from runtime.kv.tiers.behind import WriteBehind
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.loading import Found, PagesLoading, Window
from runtime.scope import Scope

_COPIERS = 2
_READERS = 4
_WRITERS = 2
# Pages of one request that are read at once, and pages that all requests without room may have in memory.
_AHEAD = 8
_WAITING_AHEAD = 64
_KEEP_S = 60.0
# Listing a large store takes long: no more than a twentieth of the time goes by with it.
_KEEP_SHARE = 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Fewer than `least_tokens` are not worth the way. A page that is not read within `patience_s` is computed. No more
    than `write_bytes_per_s` is copied out of the pool to be kept."""

    least_tokens: int
    patience_s: float
    write_bytes_per_s: float


class PageTiers:
    """`host` or `cold`, or both. `copy` asks the engine for the content of pages."""

    def __init__(
        self,
        spec: ModelSpec,
        host: Arena | None,
        cold: ColdTier | None,
        settings: TierSettings,
        clock: Clock,
        copy: Callable[[tuple[PageId, ...]], None],
    ) -> None:
        self._spec = spec
        self._host = host
        self._cold = cold
        self._settings = settings
        self._clock = clock
        # Threads that a store keeps waiting copy nothing out of memory: so those who do are others.
        self._copiers = ThreadPoolExecutor(_COPIERS, "tier-copy")
        self._readers = ThreadPoolExecutor(_READERS, "tier-read")
        self._writers = ThreadPoolExecutor(_WRITERS, "tier-write")
        self._keeper = ThreadPoolExecutor(1, "tier-keep")
        self._window = Window(_WAITING_AHEAD)
        self._behind = WriteBehind(
            spec, settings.write_bytes_per_s, clock, copy, self._put, lambda job: self._in(self._writers, job)
        )

    def match(self, chain: Sequence[PageId], start: int) -> int:
        end, host = start, self._host
        cold = None if self._cold is None or self._cold.reading.left else self._cold
        while end < len(chain) and ((host and chain[end] in host) or (cold and chain[end] in cold)):
            end += 1
        return end if (end - start) * self._spec.page_tokens >= self._settings.least_tokens else start

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> PagesLoading:
        def read(page: PageId, parent: PageId) -> "asyncio.Future[Found]":
            near = self._host is not None and page in self._host
            return self._in(self._copiers if near else self._readers, lambda: self._get(page, parent, salt))

        return PagesLoading(chain, start, read, self._window, _AHEAD, self._settings.patience_s, self._slow)

    def on_step(self, step: StepOutput) -> None:
        for filled in step.filled:
            for page in filled.pages:
                self._touch(page)
            self._behind.filled(filled, self._lacks)
        self._behind.copied(step.copied)

    def reports(self) -> tuple[TierReport, ...]:
        told = [tier.report() for tier in (self._host, self._cold) if tier is not None]
        if self._behind.dropped:
            # Counted once, where pages were to go last.
            told[-1] = replace(told[-1], failures=(*told[-1].failures, ("not written", self._behind.dropped)))
        return tuple(told)

    @property
    def waiting(self) -> int:
        """Pages that are to be written and are not yet."""
        return self._behind.waiting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write behind and look after the store while the context is open."""
        async with Scope() as group:
            tasks = [group.create_task(self._behind.run(self._pause))]
            if self._cold is not None:
                tasks.append(group.create_task(self._keep(self._cold)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        for threads in (self._copiers, self._readers, self._writers, self._keeper):
            threads.shutdown(cancel_futures=True)

    async def _keep(self, cold: ColdTier) -> None:
        while True:
            began = self._clock.now()
            await self._in(self._keeper, cold.keep)
            took = self._clock.now() - began
            await self._clock.sleep(max(_KEEP_S, _KEEP_SHARE * took))

    def _lacks(self, page: PageId) -> bool:
        host, cold = self._host, self._cold
        return (host is not None and page not in host) or (cold is not None and page not in cold)

    def _touch(self, page: PageId) -> None:
        if self._host is not None:
            self._host.touch(page)
        if self._cold is not None:
            self._cold.touch(page)

    def _get(self, page: PageId, parent: PageId, salt: bytes) -> Found:
        frame = None if self._host is None else self._host.get(page)
        if frame is not None:
            return frame, Tier.HOST
        frame = None if self._cold is None else self._cold.read(page, parent, salt)
        if frame is None:
            return None
        if self._host is not None:
            self._host.put(frame)
        return frame, Tier.COLD

    def _put(self, frame: Frame, wanted: Wanted) -> bool:
        """Whether it need not be tried again: what is in memory comes back from there."""
        if self._host is not None:
            self._host.put(frame)
        return self._cold is None or self._cold.write(frame, wanted) or self._host is not None

    def _pause(self) -> float:
        """While nobody takes pages, they wait in the pool."""
        return self._cold.writing.left if self._host is None and self._cold is not None else 0.0

    def _slow(self) -> None:
        if self._cold is not None:
            self._cold.slow()

    def _in(self, threads: ThreadPoolExecutor, job: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(threads, job)
