"""KV pages: their identity, who holds which, and what the prefix cache keeps. Never their content.

Every page is in exactly one of four places (invariant 16):

    FREE      holds nothing
    LANDING   reserved by one sequence for a frame that is on its way
    OWNED     pinned by `references` sequences
    CACHED    pinned by none, its content known by a page id; the least recently used is evicted first

A page enters the prefix cache with `publish`, once all its tokens have KV; until then it is private to its sequence.
No content is there twice, so whoever holds a page holds all that it continues, and releases it before them: the
least recently used page is always a leaf, and no eviction leaves a page that nobody can find.
"""

import enum
import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.domain.records import quick
from runtime.errors import InvariantViolation
from runtime.ids import PageId, SessionId

ROOT = PageId(b"")


def page_id(salt: bytes, parent: PageId, tokens: Sequence[int], page_tokens: int, fingerprint: str) -> PageId:
    """BLAKE2b-128 over the parent's id and this page's tokens, keyed by the tenant's secret (at most 64 bytes).

    The id of a partial tail hashes just its valid tokens, so it never equals the id of the full page.
    """
    digest = hashlib.blake2b(parent, digest_size=16, key=salt)
    digest.update(struct.pack(f"<{len(tokens)}i", *tokens))
    digest.update(b"%d:%d:%s" % (len(tokens), page_tokens, fingerprint.encode()))
    return PageId(digest.digest())


def extend_chain(
    chain: list[PageId], salt: bytes, tokens: Sequence[int], page_tokens: int, fingerprint: str
) -> list[PageId]:
    """Append to `chain` the ids of the full pages of `tokens` that it lacks, and return it."""
    for start in range(len(chain) * page_tokens, len(tokens) - page_tokens + 1, page_tokens):
        parent = chain[-1] if chain else ROOT
        chain.append(page_id(salt, parent, tokens[start : start + page_tokens], page_tokens, fingerprint))
    return chain


def pages_for(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens)


class PageState(enum.Enum):
    FREE = "free"
    LANDING = "landing"
    OWNED = "owned"
    CACHED = "cached"


@quick
@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many pages are where; the four add up to `total`."""

    free: int
    landing: int
    owned: int
    cached: int

    @property
    def total(self) -> int:
        return self.free + self.landing + self.owned + self.cached


@dataclass(slots=True)
class _Page:
    state: PageState = PageState.FREE
    references: int = 0
    id: PageId | None = None
    readers: frozenset[SessionId | None] = frozenset()


class PagePool:
    """The pages of one accelerator. All numbers are pool page numbers, 0 to `pages` - 1."""

    def __init__(self, pages: int) -> None:
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._by_id: dict[PageId, int] = {}
        self._landing = 0
        self._changed: dict[PageId, bool] = {}

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def available(self) -> int:
        return len(self._free) + len(self._cached)

    def occupancy(self) -> Occupancy:
        free, cached = len(self._free), len(self._cached)
        return Occupancy(free, self._landing, len(self._pages) - free - cached - self._landing, cached)

    def match(self, chain: Sequence[PageId]) -> int:
        """How many leading pages of `chain` are resident. No effect: they may be gone at the next call."""
        for count, ident in enumerate(chain):
            if ident not in self._by_id:
                return count
        return len(chain)

    def find(self, ident: PageId) -> int | None:
        """The page that has this content, if one has."""
        return self._by_id.get(ident)

    def try_take(self, chain: Sequence[PageId], count: int, *, landing: bool = False) -> tuple[list[int], int] | None:
        """Pin the resident leading pages of `chain` and take fresh ones up to `count` in all.

        Returns (block table, how many of it were resident), or None when there is no room, and then nothing changed.
        Fresh pages are LANDING when frames are awaited for them, else OWNED.
        """
        hits = [self._by_id[ident] for ident in chain[: min(self.match(chain), count)]]
        spare = self.available - sum(self._pages[page].state is PageState.CACHED for page in hits)
        if count - len(hits) > spare:
            return None
        for page in hits:
            self._pin(page)
        # In order they often lie beside each other, and are then read where they lie.
        return hits + sorted(self._take(landing=landing) for _ in range(count - len(hits))), len(hits)

    def landed(self, page: int) -> None:
        """The frame for a LANDING page was written, or will be computed instead: its sequence owns it now."""
        entry = self._pages[page]
        if entry.state is not PageState.LANDING:
            raise InvariantViolation(16, f"page {page} landed while {entry.state.value}")
        self._landing -= 1
        entry.state, entry.references = PageState.OWNED, 1

    def publish(self, page: int, ident: PageId) -> int:
        """Make the content of an owned page known; returns the page that bears it from now on.

        When another page has the same content already, the reference moves to that one and this one is freed.
        """
        entry = self._pages[page]
        if entry.state is not PageState.OWNED or entry.id not in (None, ident):
            raise InvariantViolation(16, f"page {page} published while {entry.state.value}, or under a second id")
        known = self._by_id.get(ident)
        if known is None:
            entry.id = ident
            self._by_id[ident] = page
            self._changed[ident] = True
            return page
        if known != page:
            self.release([page])
            self._pin(known)
        return known

    def read_by(self, table: Iterable[int], session: SessionId | None) -> None:
        """Remember whose content these pages hold, also where it is nobody's session."""
        for page in table:
            entry = self._pages[page]
            if session not in entry.readers:
                entry.readers |= {session}

    def pages_of(self, session: SessionId) -> int:
        """How many hold what this session has used."""
        return sum(session in entry.readers for entry in self._pages)

    def forget(self, session: SessionId) -> tuple[int, int]:
        """Drop what only this session has used, whose sequences are gone; gives how many pages, and how many of its
        others stay for those who have used them as well."""
        dropped = shared = 0
        for page, entry in enumerate(self._pages):
            if session not in entry.readers:
                continue
            if entry.state is PageState.CACHED and len(entry.readers) == 1:
                del self._cached[page]
                self._drop(page)
                dropped += 1
            else:
                entry.readers -= {session}
                shared += 1
        return dropped, shared

    def release(self, table: Iterable[int]) -> None:
        """Give back one reference to each page of a block table."""
        for page in reversed(list(table)):
            entry = self._pages[page]
            if entry.state is PageState.LANDING:
                self._landing -= 1
                self._to_free(page)
                continue
            if entry.state is not PageState.OWNED:
                raise InvariantViolation(16, f"page {page} released while {entry.state.value}")
            entry.references -= 1
            if entry.references == 0 and entry.id is None:
                self._to_free(page)
            elif entry.references == 0:
                entry.state = PageState.CACHED
                self._cached[page] = None

    def drain_changes(self) -> tuple[tuple[PageId, ...], tuple[PageId, ...]]:
        """Page ids (stored, removed) since the last call, for the directory; each once, as it is now."""
        changed, self._changed = self._changed, {}
        stored = tuple(ident for ident, here in changed.items() if here)
        return stored, tuple(ident for ident, here in changed.items() if not here)

    def check(self) -> None:
        """Raise `InvariantViolation` 16 unless every page is in exactly one place."""
        states = [entry.state for entry in self._pages]
        counted = Occupancy(*(states.count(state) for state in PageState))
        if counted != self.occupancy():
            raise InvariantViolation(16, f"pages counted {counted}, accounted {self.occupancy()}")
        if len(set(self._free)) != len(self._free) or not all(states[page] is PageState.FREE for page in self._free):
            raise InvariantViolation(16, "the free list holds a page twice, or one that is not free")
        if set(self._cached) != {page for page, state in enumerate(states) if state is PageState.CACHED}:
            raise InvariantViolation(16, "the eviction order lacks a cached page, or has one that is not cached")
        if self._by_id != {entry.id: page for page, entry in enumerate(self._pages) if entry.id is not None}:
            raise InvariantViolation(16, "the prefix cache and the ids of the pages differ")
        for page, entry in enumerate(self._pages):
            if (entry.references > 0) != (entry.state is PageState.OWNED):
                raise InvariantViolation(16, f"page {page} is {entry.state.value} with {entry.references} references")
            if entry.state in (PageState.FREE, PageState.LANDING) and entry.id is not None:
                raise InvariantViolation(16, f"page {page} bears an id while {entry.state.value}")

    def _pin(self, page: int) -> None:
        entry = self._pages[page]
        if entry.state is PageState.CACHED:
            del self._cached[page]
            entry.state = PageState.OWNED
        entry.references += 1

    def _take(self, *, landing: bool) -> int:
        if not self._free:
            self._evict()
        page = self._free.pop()
        entry = self._pages[page]
        if landing:
            entry.state = PageState.LANDING
            self._landing += 1
        else:
            entry.state, entry.references = PageState.OWNED, 1
        return page

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        self._drop(page)

    def _drop(self, page: int) -> None:
        ident = self._pages[page].id
        assert ident is not None, "a cached page has an id"
        del self._by_id[ident]
        self._changed[ident] = False
        self._to_free(page)

    def _to_free(self, page: int) -> None:
        self._pages[page] = _Page()
        self._free.append(page)
