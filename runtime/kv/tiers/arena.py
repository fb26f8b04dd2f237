"""The host tier: pages in one piece of memory that never grows. What no other page continues makes room first.

May be called from any thread; copies and checks under one lock, since a copy of a page takes less than a turn of it.
"""

import mmap
import threading
from dataclasses import dataclass

from runtime.domain.leaves import Leaves
from runtime.domain.readers import Buried, Reader
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.tiers.changes import Changes
from runtime.kv.tiers.counting import Counting
from runtime.kv.tiers.pages import PageCodec


@dataclass(slots=True)
class _Kept:
    slot: int
    readers: frozenset[Reader]


class Arena:
    """Room for `capacity_bytes` of whole pages. The kernel gives the memory when it is first written. `changes` are of
    what it holds."""

    def __init__(self, codec: PageCodec, capacity_bytes: int) -> None:
        self.changes = Changes()
        self._codec = codec
        self._slot_bytes = codec.page_bytes
        self._free = list(range(capacity_bytes // self._slot_bytes))
        self._capacity_bytes = len(self._free) * self._slot_bytes
        self._memory = memoryview(mmap.mmap(-1, max(self._capacity_bytes, 1)))
        self._pages: dict[PageId, _Kept] = {}
        self._leaves = Leaves()
        self._buried = Buried()
        self._lock = threading.Lock()
        self._count = Counting(Tier.HOST)

    def __contains__(self, page: PageId) -> bool:
        return page in self._pages

    def use(self, page: PageId, readers: frozenset[Reader]) -> None:
        """They use it now, if it is there."""
        with self._lock:
            kept = self._pages.get(page)
            if kept is not None:
                kept.readers |= self._buried.living(readers)
                self._leaves.use(page)

    def put(self, frame: Frame, parent: PageId, readers: frozenset[Reader]) -> None:
        """Keep a page that continues `parent`, unless all who have used it were erased."""
        with self._lock:
            living, known = self._buried.living(readers), self._pages.get(frame.page)
            if known is not None:
                known.readers |= living
            if not living or known is not None or not self._capacity_bytes:
                return
            if not self._free:
                self._drop(self._leaves.next())
            slot = self._free.pop()
            self._codec.place(frame, self._slot(slot))
            self._pages[frame.page] = _Kept(slot, living)
            self._leaves.add(frame.page, parent)
            self.changes.note(frame.page, here=True)
            self._count.written += 1

    def get(self, page: PageId) -> Frame | None:
        """A copy, checked; None when it is not there, or not any more what it was."""
        with self._lock:
            kept = self._pages.get(page)
            if kept is None:
                return None
            self._leaves.use(page)
            copied = bytes(self._slot(kept.slot))
        try:
            frame = self._codec.decode(copied)
        except DataCorrupt as error:
            self._count.failed(str(error.field), error.message)
            with self._lock:
                if self._pages.get(page) is kept:
                    self._leaves.remove(page)
                    self._drop(page)
            return None
        self._count.read += 1
        return frame

    def forget(self, reader: Reader) -> tuple[int, int]:
        """Overwrite what only this reader has used, and take nothing of it any more; gives how many pages, and how many
        of its others stay for those who have used them as well."""
        with self._lock:
            self._buried.add(reader)
            used = [page for page, kept in self._pages.items() if reader in kept.readers]
            alone = [page for page in used if self._pages[page].readers == {reader}]
            for page in used:
                self._pages[page].readers -= {reader}
            for page in alone:
                self._slot(self._pages[page].slot)[:] = bytes(self._slot_bytes)
                self._leaves.remove(page)
                self._drop(page)
            return len(alone), len(used) - len(alone)

    def report(self) -> TierReport:
        with self._lock:
            pages = len(self._pages)
            return self._count.report("memory", pages, pages * self._slot_bytes, self._capacity_bytes)

    def _drop(self, page: PageId) -> None:
        self._free.append(self._pages.pop(page).slot)
        self.changes.note(page, here=False)

    def _slot(self, slot: int) -> memoryview:
        first = slot * self._slot_bytes
        return self._memory[first : first + self._slot_bytes]
