"""What came into a tier and left it since it was last told. Any thread may note and take."""

import threading

from runtime.ids import PageId


class Changes:
    """Each page once, as it is now."""

    def __init__(self) -> None:
        self._here: dict[PageId, bool] = {}
        self._lock = threading.Lock()

    def note(self, page: PageId, *, here: bool) -> None:
        with self._lock:
            self._here[page] = here

    def drain(self) -> tuple[tuple[PageId, ...], tuple[PageId, ...]]:
        """Pages (stored, removed)."""
        with self._lock:
            changed, self._here = self._here, {}
        stored = tuple(page for page, here in changed.items() if here)
        return stored, tuple(page for page, here in changed.items() if not here)
