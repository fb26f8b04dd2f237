"""Which KV pages a worker holds, as numbered changes that a watcher can follow, and can begin with at any time.

Every change has a number, one above the last. A watcher says up to which it knows; what it gets goes on from there, or
begins anew with all that is held where the changes between are not kept any more.
"""

import enum
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from runtime.ids import PageId

# Page ids in changes that are kept for watchers who lag.
_KEPT_IDS = 1 << 16
MOST_IDS = 1 << 15
"""Page ids in one message."""


class Tier(enum.IntFlag):
    """Where a worker holds a page: its device's memory, its host's, or a store that all workers reach."""

    POOL = 1
    HOST = 2
    COLD = 4


@dataclass(frozen=True, slots=True)
class Moved:
    """Pages that came into a tier, and that left it."""

    tier: Tier
    stored: tuple[PageId, ...] = field(default=(), repr=False)
    removed: tuple[PageId, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed after number `after`, up to `until`. With `reset` all that was known before is void."""

    after: int
    until: int
    moved: tuple[Moved, ...] = ()
    reset: bool = False


class Holdings:
    def __init__(self) -> None:
        self.number = 0
        self._held: dict[Tier, dict[PageId, None]] = {tier: {} for tier in Tier}
        self._log: deque[Moved] = deque()
        self._logged = 0

    def changed(self, stored: Iterable[PageId], removed: Iterable[PageId], tier: Tier = Tier.POOL) -> None:
        moved = Moved(tier, tuple(stored), tuple(removed))
        held = self._held[tier]
        for page in moved.removed:
            held.pop(page, None)
        held.update(dict.fromkeys(moved.stored))
        self.number += 1
        self._log.append(moved)
        self._logged += _size(moved)
        while self._logged > _KEPT_IDS and len(self._log) > 1:
            self._logged -= _size(self._log.popleft())

    def since(self, after: int) -> Iterator[Changes]:
        """What a watcher that knows up to `after` lacks, in messages of a bounded size; nothing when it lacks none."""
        now = self.number  # more may change while this is told
        if after == now:
            return
        oldest = now - len(self._log)
        reset = not after or not oldest <= after < now
        if reset:
            after = 0
            moved = [Moved(tier, tuple(held)) for tier, held in self._held.items()]
        else:
            moved = [self._net(after - oldest, tier) for tier in Tier]
        parts = [part for each in moved for part in _parts(each)] or [Moved(Tier.POOL)]
        # Who loses the stream before the last part has not got on.
        for number, part in enumerate(parts, 1):
            until = now if number == len(parts) else after
            yield Changes(after, until, (part,), reset=reset and number == 1)

    def _net(self, skipped: int, tier: Tier) -> Moved:
        """The changes after the first `skipped`, of one tier, each page as it is at their end."""
        last: dict[PageId, bool] = {}
        for moved in islice(self._log, skipped, None):
            if moved.tier is tier:
                last |= dict.fromkeys(moved.removed, False)
                last |= dict.fromkeys(moved.stored, True)
        stored = tuple(page for page, here in last.items() if here)
        return Moved(tier, stored, tuple(page for page, here in last.items() if not here))


def _parts(moved: Moved) -> Iterator[Moved]:
    for start in range(0, max(len(moved.stored), len(moved.removed)), MOST_IDS):
        end = start + MOST_IDS
        yield Moved(moved.tier, moved.stored[start:end], moved.removed[start:end])


def _size(moved: Moved) -> int:
    return len(moved.stored) + len(moved.removed)
