"""Pages on their way out of the tiers for one request: a window of reads ahead of whoever takes them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from runtime.domain.pages import ROOT
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier
from runtime.ids import PageId

Found = tuple[Frame, Tier] | None
Read = Callable[[PageId, PageId], "asyncio.Future[Found]"]


class Window:
    """How many pages all requests of a worker may have read ahead before they have room to land them."""

    def __init__(self, pages: int) -> None:
        self.pages = pages

    def take(self, most: int) -> int:
        """Up to `most`, as there are."""
        taken = min(most, self.pages)
        self.pages -= taken
        return taken


class PagesLoading:
    """`ports.Loading`. `read` begins to read a page, given with what it continues, and never fails. While nobody takes
    pages, no more than `window` allows are read ahead, of `ahead` at most; `slow` is told of a page that took longer
    than `patience_s`."""

    def __init__(
        self,
        chain: Sequence[PageId],
        start: int,
        read: Read,
        window: Window,
        ahead: int,
        patience_s: float,
        slow: Callable[[], None],
    ) -> None:
        self._chain = chain
        self._next = start
        self._read = read
        self._ahead = ahead
        self._patience_s = patience_s
        self._slow = slow
        self._window = window
        self._held = window.take(min(ahead, len(chain) - start))
        self._reading: deque[asyncio.Future[Found]] = deque()
        self._place = start
        self._begin(self._held)

    async def pages(self) -> AsyncIterator[tuple[Frame, Tier]]:
        self._give_back()
        try:
            while True:
                self._begin(self._ahead)
                if not self._reading:
                    return
                found = await self._found(self._reading.popleft())
                if found is None or found[0].index != self._place:
                    return
                self._place += 1
                yield found
        finally:
            self.close()

    def close(self) -> None:
        self._give_back()
        self._next = len(self._chain)
        while self._reading:
            self._reading.pop().cancel()

    async def _found(self, reading: "asyncio.Future[Found]") -> Found:
        try:
            async with asyncio.timeout(self._patience_s):
                return await reading
        except TimeoutError:
            self._slow()
        except asyncio.CancelledError:
            # By `close` it is the reading that is cancelled, and not whoever waits for it.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        return None

    def _begin(self, upto: int) -> None:
        while len(self._reading) < upto and self._next < len(self._chain):
            parent = self._chain[self._next - 1] if self._next else ROOT
            self._reading.append(self._read(self._chain[self._next], parent))
            self._next += 1

    def _give_back(self) -> None:
        self._window.pages += self._held
        self._held = 0
