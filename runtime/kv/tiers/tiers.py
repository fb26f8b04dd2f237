"""`ports.Tiers`: what is behind the pool of one worker, the nearer tier first. Owns the threads that read and write.

Nothing here waits on the event loop, and nothing that befalls a tier leaves it as more than a page that is not there.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from runtime.clock import Clock
from runtime.domain import holdings
from runtime.domain.readers import reader_of
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame, StepOutput
from runtime.domain.tiers import Tier, TierReport, Wanted
from runtime.errors import Unavailable
from runtime.ids import PageId, SessionId
from runtime.kv.tiers.arena import Arena
from runtime.kv.tiers.behind import WriteBehind
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.loading import Found, PagesLoading, Window
from runtime.kv.tiers.threads import Threads
from runtime.scope import Scope

_COPIERS = 2
_READERS = 4
_WRITERS = 2
# Pages of one request that are read at once, and pages that all requests without room may have in memory.
_AHEAD = 8
_WAITING_AHEAD = 64
# So many times the patience for a page have those that are written together.
_WRITTEN_TOGETHER = 8
_KEEP_S = 60.0
# Listing a large store takes long: no more than a twentieth of the time goes by with it.
_KEEP_SHARE = 20
_LOOK_S = 1.0
_TELL_S = 0.1
# Whoever erases waits no longer for an answer.
_FORGET_S = 4.0
_END_S = 2.0

Changed = Callable[[Sequence[PageId], Sequence[PageId], holdings.Tier], None]
"""Told which pages came into a tier, and which left it."""


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
        changed: Changed,
    ) -> None:
        self._spec = spec
        self._host = host
        self._cold = cold
        self._settings = settings
        self._clock = clock
        self._changed = changed
        # Threads that a store keeps waiting copy nothing out of memory: so those who do are others.
        self._copiers = Threads(_COPIERS, "tier-copy")
        self._readers = Threads(_READERS, "tier-read")
        self._writers = Threads(_WRITERS, "tier-write")
        self._keeper = Threads(1, "tier-keep")
        self._window = Window(_WAITING_AHEAD)
        self._forgotten: dict[SessionId, tuple[int, int]] = {}
        self._forgetting: dict[SessionId, asyncio.Future[tuple[int, int]]] = {}
        self._behind = WriteBehind(spec, settings.write_bytes_per_s, clock, copy, self._is_kept, self._put)

    def match(self, chain: Sequence[PageId], start: int) -> int:
        end, host = start, self._host
        cold = None if self._cold is None or self._cold.reading.left else self._cold
        while end < len(chain) and ((host and chain[end] in host) or (cold and chain[end] in cold)):
            end += 1
        return end if (end - start) * self._spec.page_tokens >= self._settings.least_tokens else start

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> PagesLoading:
        def read(page: PageId, parent: PageId) -> "asyncio.Future[Found]":
            if self._host is not None and page in self._host:
                return self._copiers.run(lambda: self._near(page))
            return self._readers.run(lambda: self._far(page, parent, salt))

        return PagesLoading(chain, start, read, self._window, _AHEAD, self._settings.patience_s, self._slow)

    def on_step(self, step: StepOutput) -> None:
        for filled in step.filled:
            readers = frozenset({reader_of(filled.session)})
            for page in filled.pages:
                if self._host is not None:
                    self._host.use(page, readers)
                if self._cold is not None:
                    self._cold.touch(page)
            self._behind.filled(filled, self._lacks)
        self._behind.copied(step.copied)

    async def forget(self, session: SessionId) -> tuple[int, int]:
        reader, host, cold = reader_of(session), self._host, self._cold
        self._behind.forget(reader)
        if cold is not None:
            cold.bury(reader)
        if host is not None:
            self._gone(session, await self._copiers.run(lambda: host.forget(reader)))
        if cold is not None:
            self._gone(session, await self._forget_cold(cold, session))
        return self._forgotten.pop(session, (0, 0))

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
        """Write behind, look after the store and tell of what changes, while the context is open."""
        async with Scope() as group:
            tasks = [group.create_task(self._behind.run(self._pause)), group.create_task(self._tell())]
            if self._cold is not None:
                tasks.append(group.create_task(self._keep(self._cold)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                every = (self._copiers, self._readers, self._writers, self._keeper)
                for threads in every:
                    threads.close()
                ends = time.monotonic() + _END_S
                await asyncio.to_thread(lambda: [threads.join(ends) for threads in every])

    async def _keep(self, cold: ColdTier) -> None:
        while True:
            began = self._clock.now()
            await self._keeper.run(cold.keep)
            took = self._clock.now() - began
            again = began + took + (cold.listing.left or max(_KEEP_S, _KEEP_SHARE * took))
            least = began + took + max(_LOOK_S, _KEEP_SHARE * took)
            while (now := self._clock.now()) < again and not (cold.full and now >= least):
                await self._clock.sleep(min(_LOOK_S, again - now))

    async def _tell(self) -> None:
        tiers = ((self._host, holdings.Tier.HOST), (self._cold, holdings.Tier.COLD))
        while True:
            for tier, name in tiers:
                if tier is not None and any(changes := tier.changes.drain()):
                    self._changed(*changes, name)
            await self._clock.sleep(_TELL_S)

    async def _forget_cold(self, cold: ColdTier, session: SessionId) -> tuple[int, int]:
        """A store that is slow goes on when nobody waits any more, and tells whoever asks again."""
        asked = self._forgetting.get(session)
        if asked is None:
            asked = self._forgetting[session] = self._keeper.run(lambda: cold.forget(reader_of(session)))
        await asyncio.wait({asked}, timeout=_FORGET_S)
        if not asked.done():
            raise Unavailable("the store of pages does not answer in time", retry_after_ms=1000)
        self._forgetting.pop(session, None)
        return asked.result()

    def _gone(self, session: SessionId, count: tuple[int, int]) -> None:
        """Kept until all tiers are through, which a store may keep from this for several tries."""
        dropped, shared = self._forgotten.get(session, (0, 0))
        self._forgotten[session] = dropped + count[0], shared + count[1]

    def _lacks(self, wanted: Wanted) -> bool:
        host, cold = self._host, self._cold
        return (host is not None and wanted.page not in host) or (
            cold is not None and cold.lacks(wanted.page, wanted.readers)
        )

    def _is_kept(self, page: PageId) -> bool:
        """Whether its content is wherever it is to be."""
        return (self._host is None or page in self._host) and (self._cold is None or page in self._cold)

    def _near(self, page: PageId) -> Found:
        frame = None if self._host is None else self._host.get(page)
        return None if frame is None else (frame, Tier.HOST)

    def _far(self, page: PageId, parent: PageId, salt: bytes) -> Found:
        if self._cold is None:
            return None
        frame = self._cold.read(page, parent, salt)
        if frame is None:
            return None
        if self._host is not None:
            self._host.put(frame, parent, self._cold.readers(page))
        return frame, Tier.COLD

    async def _put(self, frame: Frame | None, wanted: Wanted) -> bool:
        """Whether it need not be tried again: what is in memory comes back from there."""
        host, cold = self._host, self._cold
        if host is not None and frame is not None:
            await self._copiers.run(lambda: host.put(frame, wanted.parent, wanted.readers))
        if cold is None:
            return True
        try:
            async with asyncio.timeout(_WRITTEN_TOGETHER * self._settings.patience_s):
                done = await self._writers.run(lambda: cold.write(frame, wanted))
        except TimeoutError:
            cold.slow(cold.writing)
            return host is not None
        return done or host is not None

    def _pause(self) -> float:
        """While nobody takes pages, they wait in the pool."""
        return self._cold.writing.left if self._host is None and self._cold is not None else 0.0

    def _slow(self) -> None:
        if self._cold is not None:
            self._cold.slow(self._cold.reading)
