"""For how long a store that fails is left alone: longer each time, until it does something again."""

import threading
from collections.abc import Callable

_FIRST_S = 1.0
_LONGEST_S = 60.0


class Patience:
    """With one thing that a store does. `now` gives monotonic seconds; `cause` is why it failed last, and empty once it
    worked again. Any thread may call."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.cause = ""
        self._now = now
        self._until = 0.0
        self._pause_s = 0.0
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until it is worth asking again; 0 when it is now."""
        return max(self._until - self._now(), 0.0)

    def failed(self, cause: str) -> None:
        with self._lock:
            self.cause = cause
            if self.left:
                return  # of those that were under way together one counts
            self._pause_s = min(max(2 * self._pause_s, _FIRST_S), _LONGEST_S)
            self._until = self._now() + self._pause_s

    def worked(self) -> None:
        with self._lock:
            self.cause = ""
            self._pause_s = self._until = 0.0
