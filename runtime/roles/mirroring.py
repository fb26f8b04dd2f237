"""`ports.Mirror`: has others hold copies of a decode worker's pages, as they fill, at most so fast.

Owns what waits, for each holder in a lane of its own: names and tokens of sequences, never pages. A holder is told what
a sequence is and fetches what it lacks; one that fails is left alone for a while, and the next in the list is asked.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from runtime.clock import Clock
from runtime.domain.messages import Holder, MirrorReport, Start
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.domain.sequence import Ref
from runtime.domain.spec import ModelSpec
from runtime.errors import BatonError, DeadlineExceeded, NotFound, ResourceExhausted, StaleAttempt
from runtime.ids import BootId, SequenceId, SessionId
from runtime.ports import MirrorPeers
from runtime.roles.holding import batch_pages

# What says nothing against the holder: it is full, or the pages are gone here.
_HARMLESS = (NotFound, ResourceExhausted, StaleAttempt)


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """No more than `bytes_per_s` leave for all copies together, on average. `backlog_pages` bounds what waits for one
    holder: beyond, the sequence that has waited longest is dropped until it grows. A holder that does not take a batch
    within `patience_s` is left alone for `rest_s`."""

    bytes_per_s: float
    backlog_pages: int = 8192
    patience_s: float = 5.0
    rest_s: float = 5.0


@dataclass(slots=True, eq=False)
class _Copied:
    """A sequence that others hold copies of. The first `pages` pages are full; `held` are those that each has."""

    start: Start
    tokens: list[int]
    pages: int = 0
    ended: bool = False
    held: dict[BootId, int] = field(default_factory=dict)

    def lacking(self, boot: BootId) -> int:
        return self.pages - self.held.get(boot, 0)


class MirrorRole:
    """`here` is this worker, as its holders are to reach it."""

    def __init__(
        self, here: Holder, spec: ModelSpec, peers: MirrorPeers, clock: Clock, settings: MirrorSettings
    ) -> None:
        self.here = here
        self.clock = clock
        self.settings = settings
        self.page_tokens = spec.page_tokens
        self.batch = batch_pages(spec)
        self.peers = peers
        self._sequences: dict[SequenceId, _Copied] = {}
        self._lanes: dict[BootId, _Lane] = {}
        self._resting: dict[BootId, float] = {}
        self._free_at = 0.0
        self._told = MirrorReport()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Copy until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def grew(self, start: Start, tokens: Sequence[int]) -> None:
        if not start.copies or not start.mirrors:
            return
        copied = self._sequences.get(start.ref.sequence)
        if copied is None:
            copied = self._sequences[start.ref.sequence] = _Copied(start, [*start.prompt, *start.forced])
        copied.tokens.extend(tokens)
        # The newest token has no KV yet.
        full = (len(copied.tokens) - 1) // self.page_tokens
        if full > copied.pages:
            copied.pages = full
            self.offer(copied)

    def ended(self, ref: Ref) -> None:
        copied = self._sequences.get(ref.sequence)
        if copied is not None:
            copied.ended = True
            self.settle(copied)

    def forget(self, session: SessionId) -> None:
        """Nothing more of it is copied."""
        for copied in [each for each in self._sequences.values() if each.start.session == session]:
            for lane in self._lanes.values():
                lane.drop(copied)
            copied.pages = 0
            del self._sequences[copied.start.ref.sequence]

    async def fetch(self, holder: Holder, call: FetchCall) -> Fetched:
        return await self.peers.holder(holder).fetch(call)

    def report(self) -> MirrorReport:
        return replace(self._told, waiting=sum(lane.waiting for lane in self._lanes.values()))

    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not any(lane.at_work for lane in self._lanes.values())

    def offer(self, copied: _Copied) -> None:
        """Have the best holders that are fit take what they lack of it."""
        group = self._group
        if group is None:
            return
        for holder in self._fit(copied.start):
            lane = self._lanes.setdefault(holder.boot, _Lane(self, holder))
            lane.add(copied)
            if not lane.at_work:
                lane.at_work = True
                group.create_task(lane.run())

    def settle(self, copied: _Copied) -> None:
        """Forget a sequence that has ended once nobody is to copy more of it."""
        if copied.ended and not any(lane.has(copied) for lane in self._lanes.values()):
            self._sequences.pop(copied.start.ref.sequence, None)

    def leave(self, lane: "_Lane") -> None:
        """A lane has nothing more to do."""
        if self._lanes.get(lane.holder.boot) is lane:
            del self._lanes[lane.holder.boot]

    def rest(self, holder: Holder, left: Sequence[_Copied]) -> None:
        """A holder failed: others are asked for what it was to take."""
        now = self.clock.now()
        self._resting = {boot: until for boot, until in self._resting.items() if until > now}
        self._resting[holder.boot] = now + self.settings.rest_s
        for copied in left:
            # Of a session that was erased meanwhile there is nothing to take.
            if copied.pages:
                self.offer(copied)
            self.settle(copied)

    def count(self, *, pages: int = 0, moved: int = 0, dropped: int = 0, failures: int = 0) -> None:
        told = self._told
        self._told = replace(
            told,
            pages=told.pages + pages,
            bytes=told.bytes + moved,
            dropped=told.dropped + dropped,
            failures=told.failures + failures,
        )

    async def pace(self, moved: int) -> None:
        """Wait as long as so many bytes may take, behind all that moved before."""
        now = self.clock.now()
        self._free_at = max(self._free_at, now) + moved / self.settings.bytes_per_s
        if self._free_at > now:
            await self.clock.sleep(self._free_at - now)

    def _fit(self, start: Start) -> list[Holder]:
        now = self.clock.now()
        fit = [each for each in start.mirrors if self._resting.get(each.boot, now) <= now]
        return fit[: start.copies]


class _Lane:
    """What one holder is to take, the sequence first that waits longest."""

    def __init__(self, role: MirrorRole, holder: Holder) -> None:
        self.holder = holder
        self.at_work = False
        self._role = role
        self._queue: OrderedDict[SequenceId, _Copied] = OrderedDict()
        self._current: _Copied | None = None

    @property
    def waiting(self) -> int:
        """Pages."""
        current = 0 if self._current is None else self._current.lacking(self.holder.boot)
        return current + sum(copied.lacking(self.holder.boot) for copied in self._queue.values())

    def has(self, copied: _Copied) -> bool:
        return copied is self._current or copied.start.ref.sequence in self._queue

    def add(self, copied: _Copied) -> None:
        boot = self.holder.boot
        self._queue.setdefault(copied.start.ref.sequence, copied)
        waiting = sum(each.lacking(boot) for each in self._queue.values())
        while waiting > self._role.settings.backlog_pages and len(self._queue) > 1:
            _, dropped = self._queue.popitem(last=False)
            waiting -= dropped.lacking(boot)
            self._role.count(dropped=dropped.lacking(boot))
            self._role.settle(dropped)

    def drop(self, copied: _Copied) -> None:
        self._queue.pop(copied.start.ref.sequence, None)

    async def run(self) -> None:
        """Until nothing waits, or the holder fails."""
        for copied in self._next():
            try:
                kept = await self._keep(copied)
            except _HARMLESS:
                self._role.count(failures=1, dropped=copied.lacking(self.holder.boot))
            except BatonError:
                self._role.count(failures=1)
                self._role.leave(self)
                left = [copied, *self._queue.values()]
                self._current = None
                self._queue.clear()
                self._role.rest(self.holder, left)
                return
            else:
                await self._took(copied, kept)
        self.at_work = False
        self._role.leave(self)

    def _next(self) -> Iterator[_Copied]:
        while self._queue:
            _, self._current = self._queue.popitem(last=False)
            yield self._current
            copied, self._current = self._current, None
            self._role.settle(copied)

    async def _keep(self, copied: _Copied) -> Kept:
        role, start = self._role, copied.start
        size, patience_s = role.page_tokens, role.settings.patience_s
        call = KeepCall(
            start.tenant,
            tuple(copied.tokens[: copied.pages * size + 1]),
            role.here,
            role.batch,
            max(round(patience_s * 1000), 1),
            start.session,
        )
        try:
            async with asyncio.timeout(patience_s):
                return await role.peers.holder(self.holder).keep(call)
        except TimeoutError:
            raise DeadlineExceeded("the holder takes too long") from None

    async def _took(self, copied: _Copied, kept: Kept) -> None:
        boot = self.holder.boot
        before = copied.held.get(boot, 0)
        pages = min(kept.pages, copied.pages)
        copied.held[boot] = pages
        self._role.count(pages=max(pages - before, 0), moved=kept.fetched_bytes)
        if pages > before and copied.lacking(boot) > 0:
            self.add(copied)
        await self._role.pace(kept.fetched_bytes)
