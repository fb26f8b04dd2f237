"""What is kept behind a pool, and for how long. Never reads, writes or waits.

HOST   an arena in the host's memory: as fast as a copy, gone with its process
COLD   objects in a store, a folder or a bucket: outlives processes and machines
"""

import enum
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from runtime.domain.readers import NOBODY, Reader, reader_of
from runtime.domain.steps import Filled
from runtime.ids import PageId


class Tier(enum.Enum):
    HOST = "host"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier of one worker: what it holds now, of how many `capacity_bytes`, and what became of pages since the
    worker started. `place` is where it is, for people. `failures` counts what was given up, by reason; `trouble` says
    what does not work and why, and is empty again once each of these has worked."""

    tier: Tier
    place: str
    pages: int
    bytes: int
    capacity_bytes: int
    written_pages: int = 0
    read_pages: int = 0
    failures: tuple[tuple[str, int], ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """A page in a store: it continues `parent`, takes `size` bytes, and was written or used last at `used` seconds of
    the store's clock."""

    page: PageId
    parent: PageId
    size: int
    used: float


def collectable(pages: Iterable[Stored], *, before: float, most_bytes: int) -> list[PageId]:
    """What a store lets go: pages that were used last before `before`, and of the others those that were not used for
    longest, until the rest takes no more than `most_bytes`.

    A page that another one in the store continues is not let go before that one, however old it is: the rest of the
    chain would be found no more. A child is given before its parent.
    """
    known = {page.page: page for page in pages}
    references = Counter(page.parent for page in known.values() if page.parent in known)
    leaves = [(page.used, page.page) for page in known.values() if not references[page.page]]
    heapq.heapify(leaves)
    size = sum(page.size for page in known.values())
    found: list[PageId] = []
    while leaves and (leaves[0][0] < before or size > most_bytes):
        page = known[heapq.heappop(leaves)[1]]
        found.append(page.page)
        size -= page.size
        if page.parent in known:
            references[page.parent] -= 1
            if not references[page.parent]:
                heapq.heappush(leaves, (known[page.parent].used, page.parent))
    return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page to be written behind: what it continues, its place in its sequence, what its id is keyed with, and who has
    used it."""

    page: PageId
    parent: PageId
    index: int
    salt: bytes = field(repr=False)
    readers: frozenset[Reader] = frozenset({NOBODY})


class Backlog:
    """Pages that wait to be written behind, in the order in which they filled. At most `bound`: what finds no room is
    dropped, and with it all that continues it, which nobody could find without it."""

    def __init__(self, bound: int) -> None:
        self.dropped = 0
        self._bound = bound
        self._waiting: dict[PageId, Wanted] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pages: Iterable[Wanted]) -> None:
        """Take what follows each other in one sequence."""
        for count, wanted in enumerate(fresh := [each for each in pages if not self._waits(each)]):
            if len(self._waiting) >= self._bound:
                self.dropped += len(fresh) - count
                return
            self._waiting[wanted.page] = wanted

    def take(self, count: int) -> dict[PageId, Wanted]:
        """Up to `count`, the oldest first; they wait no more."""
        taken = {page: self._waiting[page] for page in list(self._waiting)[:count]}
        for page in taken:
            del self._waiting[page]
        return taken

    def put_back(self, taken: dict[PageId, Wanted]) -> None:
        """They could not be written: they come first again."""
        self._waiting = taken | self._waiting

    def forget(self, reader: Reader) -> None:
        """What nobody else has used waits no more."""
        for wanted in [each for each in self._waiting.values() if reader in each.readers]:
            left = wanted.readers - {reader}
            if left:
                self._waiting[wanted.page] = replace(wanted, readers=left)
            else:
                del self._waiting[wanted.page]

    def _waits(self, wanted: Wanted) -> bool:
        """Whether it waits already; then it is for those who want it now as well."""
        known = self._waiting.get(wanted.page)
        if known is None:
            return False
        if not wanted.readers <= known.readers:
            self._waiting[wanted.page] = replace(known, readers=known.readers | wanted.readers)
        return True


def wanted_of(filled: Filled) -> list[Wanted]:
    """Pages that follow each other, each with what it continues."""
    readers = frozenset({reader_of(filled.session)})
    pairs = zip(filled.pages, (filled.parent, *filled.pages[:-1]), strict=True)
    return [
        Wanted(page, before, filled.first + place, filled.salt, readers) for place, (page, before) in enumerate(pairs)
    ]
