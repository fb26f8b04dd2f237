"""Zeroed memory of this host for a pool: the kernel gives it when it is first written, and a little before that.

A large pool so costs a start nothing, and what is not used stays free. But the kernel takes its time, more of it than a
copy into the page takes, and most of all on virtual machines: so a thread asks for the next pages ahead of their use.
"""

import ctypes
import math
import mmap
import threading

import numpy as np
import torch

AHEAD_BYTES = 128 << 20
_ALIGNED = 64  # bytes, as torch's own memory is
_SLICE_BYTES = 16 << 20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, madvise(2): changes nothing that is there
# Without the interpreter's lock, so that nobody waits for it.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class HostMemory:
    """A tensor of zeros `[*planes, pages, *page]`, whose pages are used in the order of their numbers, about."""

    def __init__(self, planes: tuple[int, ...], pages: int, page: tuple[int, ...], dtype: torch.dtype) -> None:
        shape = (*planes, pages, *page)
        size = math.prod(shape) * dtype.itemsize
        raw = torch.from_numpy(np.zeros(size + _ALIGNED, np.uint8))
        first = -raw.data_ptr() % _ALIGNED
        self.tensor = raw[first : first + size].view(dtype).view(shape)
        self._pages = pages
        self._plane_bytes = size // math.prod(planes)
        self._page_bytes = self._plane_bytes // pages
        self._starts = [self.tensor.data_ptr() + plane * self._plane_bytes for plane in range(math.prod(planes))]
        self._ahead = max(AHEAD_BYTES // (self._page_bytes * len(self._starts)), 1)
        self._asked = 0
        self._lock = threading.Lock()
        self._wanted = 0
        self._working = False
        self.reached(0)

    def reached(self, page: int) -> None:
        """That page is about to be used; returns at once."""
        wanted = min(page + self._ahead, self._pages)
        if wanted - self._wanted < self._ahead // 4 and wanted < self._pages:
            return
        with self._lock:
            if wanted <= self._wanted:
                return
            self._wanted = wanted
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._populate, name="kv-memory", daemon=True).start()

    def _populate(self) -> None:
        while True:
            with self._lock:
                first, end = self._asked, self._wanted
                end = min(end, first + max(_SLICE_BYTES // (self._page_bytes * len(self._starts)), 1))
                self._working = first < end
                self._asked = end
            if first == end or not self._take(first, end):
                return

    def _take(self, first: int, end: int) -> bool:
        """False where the kernel does not know how: then every page is given when it is written."""
        for start in self._starts:
            begins = (start + first * self._page_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if _madvise(begins, start + end * self._page_bytes - begins, _POPULATE_WRITE):
                return False
        return True
