"""The host tier: pages in one piece of memory that never grows. The least recently used makes room.

May be called from any thread; copies and checks under one lock, since a copy of a page takes less than a turn of it.
"""

import mmap
import threading
from collections import OrderedDict

from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.tiers.counting import Counting
from runtime.kv.tiers.pages import PageCodec


class Arena:
    """Room for `capacity_bytes` of whole pages. The kernel gives the memory when it is first written."""

    def __init__(self, codec: PageCodec, capacity_bytes: int) -> None:
        self._codec = codec
        self._slot_bytes = codec.page_bytes
        self._free = list(range(capacity_bytes // self._slot_bytes))
        self._capacity_bytes = len(self._free) * self._slot_bytes
        self._memory = memoryview(mmap.mmap(-1, max(self._capacity_bytes, 1)))
        # The slot of each page, the least recently used first.
        self._places: OrderedDict[PageId, int] = OrderedDict()
        self._lock = threading.Lock()
        self._count = Counting(Tier.HOST)

    def __contains__(self, page: PageId) -> bool:
        return page in self._places

    def touch(self, page: PageId) -> None:
        """It was used."""
        with self._lock:
            if page in self._places:
                self._places.move_to_end(page)

    def put(self, frame: Frame) -> None:
        with self._lock:
            if frame.page in self._places or not self._capacity_bytes:
                return
            if not self._free:
                self._free.append(self._places.popitem(last=False)[1])
            slot = self._free.pop()
            self._codec.place(frame, self._slot(slot))
            self._places[frame.page] = slot
            self._count.written += 1

    def get(self, page: PageId) -> Frame | None:
        """A copy, checked; None when it is not there, or not any more what it was."""
        with self._lock:
            place = self._places.get(page)
            if place is None:
                return None
            self._places.move_to_end(page)
            copied = bytes(self._slot(place))
        try:
            frame = self._codec.decode(copied)
        except DataCorrupt as error:
            self._count.failed(str(error.field), error.message)
            with self._lock:
                if self._places.get(page) == place:
                    del self._places[page]
                    self._free.append(place)
            return None
        self._count.read += 1
        return frame

    def report(self) -> TierReport:
        with self._lock:
            pages = len(self._places)
            return self._count.report("memory", pages, pages * self._slot_bytes, self._capacity_bytes)

    def _slot(self, slot: int) -> memoryview:
        first = slot * self._slot_bytes
        return self._memory[first : first + self._slot_bytes]
