"""The host tier: pages as frames in one piece of memory that never grows. The least recently used makes room.

May be called from any thread; copies and checks under one lock, since a copy of a page takes less than a turn of it.
"""

import mmap
import threading
from collections import OrderedDict

from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.frames import FrameCodec
from runtime.kv.tiers.counting import Counting


class Arena:
    """Takes what is a whole page, unpacked. The kernel gives the memory when it is first written."""

    def __init__(self, codec: FrameCodec, capacity_bytes: int) -> None:
        self._codec = codec
        self._slot_bytes = codec.max_bytes
        self._free = list(range(capacity_bytes // self._slot_bytes))
        self._capacity_bytes = len(self._free) * self._slot_bytes
        self._memory = memoryview(mmap.mmap(-1, max(self._capacity_bytes, 1)))
        # Slot and length of each frame, the least recently used first.
        self._places: OrderedDict[PageId, tuple[int, int]] = OrderedDict()
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
                _, (freed, _) = self._places.popitem(last=False)
                self._free.append(freed)
            slot = self._free.pop()
            length = self._codec.place(frame, self._slot(slot, self._slot_bytes))
            self._places[frame.page] = slot, length
            self._count.written += 1

    def get(self, page: PageId) -> Frame | None:
        """A copy, checked; None when it is not there, or not any more what it was."""
        with self._lock:
            place = self._places.get(page)
            if place is None:
                return None
            self._places.move_to_end(page)
            copied = bytes(self._slot(*place))
        try:
            frame = self._codec.decode(copied)
        except DataCorrupt as error:
            self._count.failed(str(error.field), error.message)
            with self._lock:
                if self._places.get(page) == place:
                    del self._places[page]
                    self._free.append(place[0])
            return None
        self._count.read += 1
        return frame

    def report(self) -> TierReport:
        with self._lock:
            used = sum(length for _, length in self._places.values())
            return self._count.report("memory", len(self._places), used, self._capacity_bytes)

    def _slot(self, slot: int, length: int) -> memoryview:
        first = slot * self._slot_bytes
        return self._memory[first : first + length]
