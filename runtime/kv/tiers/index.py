"""Which pages of one model a store has, as far as this worker knows, and when it used them. Any thread may call."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from runtime.domain.tiers import Stored
from runtime.ids import PageId


class Index:
    """`now` gives monotonic seconds. Times of `Stored` are on the store's clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.bytes = 0
        self._now = now
        self._sizes: dict[PageId, int] = {}
        self._used: dict[PageId, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, page: PageId) -> bool:
        return page in self._sizes

    def touch(self, page: PageId) -> None:
        """It is used now."""
        with self._lock:
            if page in self._sizes:
                self._used[page] = self._now()

    def add(self, page: PageId, size: int) -> None:
        with self._lock:
            self.bytes += size - self._sizes.get(page, 0)
            self._sizes[page] = size
            self._used[page] = self._now()

    def forget(self, page: PageId) -> None:
        with self._lock:
            self.bytes -= self._sizes.pop(page, 0)
            self._used.pop(page, None)

    def aged(self, listed: Iterable[Stored], store_now: float) -> list[Stored]:
        """The same, each used when this worker used it, where that is later."""
        with self._lock:
            offset = store_now - self._now()
            used = {page: at + offset for page, at in self._used.items()}
        return [replace(page, used=max(page.used, used.get(page.page, 0.0))) for page in listed]

    def replace(self, sizes: dict[PageId, int], began: float) -> None:
        """This is what a listing found that began at `began`; what was added since is there too."""
        with self._lock:
            for page, at in self._used.items():
                if at >= began and page not in sizes:
                    sizes[page] = self._sizes[page]
            self._sizes = sizes
            self._used = {page: at for page, at in self._used.items() if page in sizes}
            self.bytes = sum(sizes.values())
