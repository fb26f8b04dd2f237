"""Files that may be replaced while a process runs. Owns when they are read again; never what they mean."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What `files` hold, as `parse` understands their contents; understood anew once one of them was replaced.

    The first reading raises what is wrong: `OSError`, or the `ValueError` of `parse`. Later ones keep what made sense.
    With `optional` a file that is not there is an empty one.
    """

    def __init__(self, files: Sequence[Path], parse: Callable[[Sequence[bytes]], T], *, optional: bool = False) -> None:
        self._files = tuple(files)
        self._optional = optional
        self._parse = parse
        self._seen = self._look()
        self._value = self._read()

    def current(self) -> T:
        """Looks at the files, which takes microseconds; the same object as long as nothing changed."""
        try:
            now = self._look()
            if now != self._seen:
                self._value, self._seen = self._read(), now
        except (OSError, ValueError) as error:
            _log.warning("a replaced file makes no sense, the one before it counts: %s", error)
        return self._value

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(self._look_at(file) for file in self._files)

    def _look_at(self, file: Path) -> tuple[int, int, int]:
        try:
            look = file.stat()
        except FileNotFoundError:
            if not self._optional:
                raise
            return (0, 0, 0)
        return (look.st_ino, look.st_mtime_ns, look.st_size)

    def _read(self) -> T:
        return self._parse([self._read_one(file) for file in self._files])

    def _read_one(self, file: Path) -> bytes:
        try:
            return file.read_bytes()
        except FileNotFoundError:
            if not self._optional:
                raise
            return b""
