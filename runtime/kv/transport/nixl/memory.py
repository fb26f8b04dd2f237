"""Memory that NIXL reads from or writes into, cut into slots of equal size. Owns the memory; never who uses a slot."""

import mmap
from dataclasses import dataclass

import numpy as np

from runtime.errors import ResourceExhausted

_PAGE = mmap.PAGESIZE
DOORMAT_BYTES = _PAGE
HOST = "DRAM"


@dataclass(frozen=True, slots=True)
class Region:
    """Memory as NIXL knows it: `bytes` from `address` on, in `memory` (`DRAM`, or `VRAM` of a `device`)."""

    address: int
    bytes: int
    memory: str = HOST
    device: int = 0


class Memory:
    """`slots` slots of the host, and behind them a page, the doormat, that anybody may write to. All of it is touched:
    a first transfer would else wait for the kernel to find it."""

    def __init__(self, slots: int, least_slot_bytes: int) -> None:
        """Raises `ResourceExhausted` when there is not so much."""
        self.slots = slots
        self.slot_bytes = -(-least_slot_bytes // _PAGE) * _PAGE
        size = slots * self.slot_bytes + DOORMAT_BYTES
        try:
            self._map = mmap.mmap(-1, size)
        except OSError as error:
            raise ResourceExhausted(f"there are no {size:,} bytes for staging: {error.strerror}") from error
        touched = np.frombuffer(self._map, np.uint8)
        touched[::_PAGE] = 0
        self.region = Region(int(touched.ctypes.data), size)
        del touched
        self._view = memoryview(self._map)

    def slot(self, number: int, length: int | None = None) -> memoryview:
        """The first `length` bytes of a slot, or all."""
        start = number * self.slot_bytes
        return self._view[start : start + (self.slot_bytes if length is None else length)]

    def close(self) -> None:
        """Nothing must read or write it any more."""
        self._view.release()
        self._map.close()
