"""Shared memory cut into slots of equal size. Owns the mapping; who may write into which slot is decided elsewhere.

The memory has no name, so nothing of it is left when the last process that maps it is gone, however it went. It is no
file under /dev/shm either, and so not bounded by how small a container makes that. It is sealed: no process that has
it can shrink it under another.
"""

import fcntl
import mmap
import os

from runtime.errors import Unavailable

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_PAGE = mmap.PAGESIZE


class Arena:
    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        """Maps what `descriptor` names, and owns it from now on. Raises `Unavailable` when that is not an arena."""
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.descriptor = descriptor
        size = slots * slot_bytes
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(descriptor).st_size != size:
                raise Unavailable("the memory that was handed over is not sealed, or of another size")
            self._map = mmap.mmap(descriptor, size)
        except OSError as error:
            os.close(descriptor)
            raise Unavailable(f"shared memory cannot be mapped: {error.strerror}") from error
        except Unavailable:
            os.close(descriptor)
            raise
        self._view = memoryview(self._map)

    @classmethod
    def make(cls, slots: int, least_slot_bytes: int) -> "Arena":
        """Memory is taken as slots are first used. Raises `Unavailable` when this system has no such memory."""
        slot_bytes = -(-least_slot_bytes // _PAGE) * _PAGE
        try:
            descriptor = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, slots * slot_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise Unavailable(f"there is no shared memory: {error.strerror}") from error
        return cls(descriptor, slots, slot_bytes)

    def slot(self, number: int, length: int | None = None) -> memoryview:
        """The first `length` bytes of a slot, or all."""
        start = number * self.slot_bytes
        return self._view[start : start + (self.slot_bytes if length is None else length)]

    def close(self) -> None:
        """Unmap: from here on this process writes nothing into it. No view of a slot may be left."""
        self._view.release()
        self._map.close()
        os.close(self.descriptor)
