"""Which pages of one model a store has, as far as this worker knows: who used them, and when it used them itself. Any
thread may call.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from runtime.domain.readers import NOBODY, Reader
from runtime.domain.tiers import Stored
from runtime.ids import PageId
from runtime.kv.tiers.changes import Changes

_UNMARKED = frozenset({NOBODY})


class Index:
    """`now` gives monotonic seconds. Times of `Stored` are on the store's clock. `changes` are of what there is.

    A page without marks was used by nobody's session.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.bytes = 0
        self.changes = Changes()
        self._now = now
        self._sizes: dict[PageId, int] = {}
        self._used: dict[PageId, float] = {}
        self._marks: dict[PageId, frozenset[Reader]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, page: PageId) -> bool:
        return page in self._sizes

    def readers(self, page: PageId) -> frozenset[Reader]:
        """Who has used it."""
        return self._marks.get(page, _UNMARKED)

    def unmarked(self, page: PageId, readers: frozenset[Reader]) -> frozenset[Reader]:
        """Of those who use it, and did before, whose marks it still needs."""
        marks = self._marks.get(page)
        if marks is not None:
            return readers - marks
        used = readers | _UNMARKED if page in self._sizes else readers
        return frozenset() if used == _UNMARKED else used

    def mark(self, page: PageId, reader: Reader) -> None:
        with self._lock:
            self._marks[page] = self._marks.get(page, frozenset()) | {reader}

    def remark(self, page: PageId, readers: frozenset[Reader]) -> None:
        """Only these have used it, of those who have a mark."""
        with self._lock:
            if page in self._marks and readers:
                self._marks[page] = readers

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
            self.changes.note(page, here=True)

    def forget(self, page: PageId) -> None:
        with self._lock:
            if page in self._sizes:
                self.bytes -= self._sizes.pop(page)
                self.changes.note(page, here=False)
            self._used.pop(page, None)
            self._marks.pop(page, None)

    def aged(self, listed: Iterable[Stored], store_now: float) -> list[Stored]:
        """The same, each used when this worker used it, where that is later."""
        with self._lock:
            offset = store_now - self._now()
            used = {page: at + offset for page, at in self._used.items()}
        return [replace(page, used=max(page.used, used.get(page.page, 0.0))) for page in listed]

    def replace(self, sizes: dict[PageId, int], marks: Mapping[PageId, frozenset[Reader]], began: float) -> None:
        """This is what a listing found that began at `began`; what was added since is there too."""
        with self._lock:
            for page, at in self._used.items():
                if at >= began and page in self._sizes and page not in sizes:
                    sizes[page] = self._sizes[page]
            for page in sizes.keys() - self._sizes.keys():
                self.changes.note(page, here=True)
            for page in self._sizes.keys() - sizes.keys():
                self.changes.note(page, here=False)
            # Marks come before their page, which may be under way still.
            known = {page: each for page, each in self._marks.items() if page in sizes or page not in self._sizes}
            found = {page: each | known.get(page, frozenset()) for page, each in marks.items() if page in sizes}
            self._marks = known | found
            self._sizes = sizes
            self._used = {page: at for page, at in self._used.items() if page in sizes}
            self.bytes = sum(sizes.values())
