"""Which page makes room in a tier: of those that no other page there continues, the least recently used.

So a chain is let go from its end, and what stays is found from its beginning. Never knows where a page lies.
"""

import heapq
from collections import Counter

from runtime.errors import InvariantViolation
from runtime.ids import PageId


class Leaves:
    """Every page that no other continues is in `_heap`, under a time at which it was used, perhaps not the last."""

    def __init__(self) -> None:
        self._parents: dict[PageId, PageId] = {}
        self._used: dict[PageId, int] = {}
        self._children: Counter[PageId] = Counter()
        self._heap: list[tuple[int, PageId]] = []
        self._queued: set[PageId] = set()
        self._now = 0

    def add(self, page: PageId, parent: PageId) -> None:
        """It came, and is used now. What it continues may come later, or never."""
        self._parents[page] = parent
        self._children[parent] += 1
        self.use(page)
        self._queue(page)

    def use(self, page: PageId) -> None:
        self._now += 1
        self._used[page] = self._now

    def remove(self, page: PageId) -> None:
        """It is gone, also one that others continue."""
        parent = self._parents.pop(page)
        del self._used[page]
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            self._queue(parent)

    def next(self) -> PageId:
        """The one to be let go, which is removed. There is one."""
        while self._heap:
            used, page = heapq.heappop(self._heap)
            self._queued.discard(page)
            if self._used.get(page) == used and not self._children[page]:
                self.remove(page)
                return page
            self._queue(page)
        raise InvariantViolation(16, "no page of a tier can be let go")

    def _queue(self, page: PageId) -> None:
        if page in self._used and not self._children[page] and page not in self._queued:
            self._queued.add(page)
            heapq.heappush(self._heap, (self._used[page], page))
