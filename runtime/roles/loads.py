"""What the tiers have of one attempt's prompt, brought in the words of the request's table."""

from collections.abc import Callable, Sequence

from runtime.clock import Clock
from runtime.domain.loading import LoadEnded, PageLoaded
from runtime.ids import PageId
from runtime.ports import Loading, Tiers

Feed = Callable[[PageLoaded | LoadEnded], None]


class Loads:
    """Pages of `chain` from the place `start` on, which are read ahead while the request waits for room. `seconds` is
    how long they came."""

    def __init__(self, tiers: Tiers, chain: Sequence[PageId], start: int, salt: bytes) -> None:
        self.seconds = 0.0
        self._tiers = tiers
        self._chain = chain
        self._start = start
        self._salt = salt
        self._reading: Loading = tiers.load(chain, start, salt)
        self._closed = False

    async def bring(self, number: int, first: int, feed: Feed, clock: Clock) -> None:
        """Feed the pages from the place `first` on, then their end. The prefix cache may have changed since `start`."""
        if self._closed:
            return
        if first < self._start:
            self._reading.close()
            self._reading = self._tiers.load(self._chain, first, self._salt)
        began = clock.now()
        async for frame, tier in self._reading.pages():
            if frame.index >= first:
                feed(PageLoaded(number, frame, tier))
        self.seconds = clock.now() - began
        feed(LoadEnded(number))

    def close(self) -> None:
        """Bring nothing more."""
        self._closed = True
        self._reading.close()
