"""KV pages: their identity, who holds which, and what the prefix cache keeps. Never their content.

Every page is in exactly one of four places (invariant 16):

    FREE      holds nothing
    LANDING   reserved by one sequence for a frame that is on its way
    OWNED     pinned by `references` sequences
    CACHED    pinned by none, its content known by a page id; which one is evicted first, eviction.py says

A page enters the prefix cache with `publish`, once all its tokens have KV; until then it is private to its sequence.
No content is there twice, so whoever holds a page holds all that it continues. Grants (grants.py) keep pages of those
who are away: a page under one is evicted only when no other is left to evict (invariant 11).
"""

import enum
import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runtime.domain.eviction import UNKNOWN_RETURN_S, EvictionOrder, Rank
from runtime.domain.grants import Grants
from runtime.domain.records import quick
from runtime.domain.retention import Granted, Quota
from runtime.errors import InvariantViolation
from runtime.ids import PageId, SequenceId, SessionId

ROOT = PageId(b"")
# Sequences of sessions that have ended and of which it is not told yet when they are back.
_ENDED = 1024


def page_id(salt: bytes, parent: PageId, tokens: Sequence[int], page_tokens: int, fingerprint: str) -> PageId:
    """BLAKE2b-128 over the parent's id and this page's tokens, keyed by the tenant's secret (at most 64 bytes).

    The id of a partial tail hashes just its valid tokens, so it never equals the id of the full page.
    """
    digest = hashlib.blake2b(parent, digest_size=16, key=salt)
    digest.update(struct.pack(f"<{len(tokens)}i", *tokens))
    digest.update(b"%d:%d:%s" % (len(tokens), page_tokens, fingerprint.encode()))
    return PageId(digest.digest())


def extend_chain(
    chain: list[PageId],
    salt: bytes,
    tokens: Sequence[int],
    page_tokens: int,
    fingerprint: str,
    most: int | None = None,
) -> list[PageId]:
    """Append to `chain` the ids of the full pages of `tokens` that it lacks, `most` of them at the most, and return
    it."""
    for start in range(len(chain) * page_tokens, len(tokens) - page_tokens + 1, page_tokens)[:most]:
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
    """`children` pages in the pool continue it, the page `parent` comes before it. It takes `cost` to have it again.
    Once cached, it is unused since then, as the `number`th that came to be so, and likely so for `returns_s`."""

    state: PageState = PageState.FREE
    references: int = 0
    id: PageId | None = None
    readers: frozenset[SessionId | None] = frozenset()
    parent: int | None = None
    children: int = 0
    cost: float = 1.0
    since: float = 0.0
    number: int = 0
    returns_s: float = UNKNOWN_RETURN_S


def _no_time() -> float:
    return 0.0


class PagePool:
    """The pages of one accelerator. All numbers are pool page numbers, 0 to `pages` - 1. `now` gives monotonic
    seconds."""

    def __init__(self, pages: int, now: Callable[[], float] = _no_time) -> None:
        self.grants = Grants()
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._cached: set[int] = set()
        # Of the cached pages those that nothing continues; and how many of all are under no grant.
        self._leaves = EvictionOrder()
        self._ungranted = 0
        self._by_id: dict[PageId, int] = {}
        self._landing = 0
        self._changed: dict[PageId, bool] = {}
        self._now = now
        self._number = 0
        self._ended: OrderedDict[SequenceId, tuple[list[int], int]] = OrderedDict()

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

    def try_take(
        self, chain: Sequence[PageId], count: int, *, landing: bool = False, sparing: bool = False
    ) -> tuple[list[int], int] | None:
        """Pin the resident leading pages of `chain` and take fresh ones up to `count` in all.

        Returns (block table, how many of it were resident), or None when there is no room, and then nothing changed.
        Fresh pages are LANDING when frames are awaited for them, else OWNED. `sparing`: what grants keep is no room.
        """
        hits = [self._by_id[ident] for ident in chain[: min(self.match(chain), count)]]
        room = len(self._free) + self._ungranted if sparing else self.available
        spare = room - sum(page in self._cached and not (sparing and page in self.grants) for page in hits)
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

    def publish(self, page: int, ident: PageId, parent: PageId = ROOT, cost: float = 1.0) -> int:
        """Make the content of an owned page known, which continues that of `parent`; returns the page that bears it
        from now on. `cost` is what it takes to have it again.

        When another page has the same content already, the reference moves to that one and this one is freed.
        """
        entry = self._pages[page]
        if entry.state is not PageState.OWNED or entry.id not in (None, ident):
            raise InvariantViolation(16, f"page {page} published while {entry.state.value}, or under a second id")
        known = self._by_id.get(ident)
        if known is None:
            entry.id, entry.cost, entry.parent = ident, cost, self._by_id.get(parent)
            if entry.parent is not None:
                self._pages[entry.parent].children += 1
            self._by_id[ident] = page
            self._changed[ident] = True
            return page
        if known != page:
            self.release([page])
            self._pin(known)
        return known

    def taken_by(self, table: Sequence[int], session: SessionId | None) -> None:
        """A sequence has taken resident pages: its session is back."""
        self.read_by(table, session)
        if session is not None and len(self.grants):
            for sequence in self.grants.used_by(session, table):
                self.let_go(sequence)

    def grant(
        self, sequence: SequenceId, session: SessionId, tenant: bytes, pages: Sequence[int], quota: Quota
    ) -> Granted:
        """Keep pages that a sequence owns, from the beginning of its context on, beyond its end."""
        refusal = self.grants.refusal(tenant, pages, quota)
        if refusal is not None:
            return Granted(0, refusal)
        self.grants.begin(sequence, session, tenant, pages, quota)
        return Granted(len(pages))

    def let_go(self, sequence: SequenceId) -> None:
        """A grant is over, if it was not: its pages are as all others."""
        for page in self.grants.end(sequence):
            if page in self._cached:
                self._ungranted += 1
                self._file(page)

    def ended(self, sequence: SequenceId, table: Sequence[int]) -> None:
        """A sequence releases its pages now, and it will be told when its session is likely back."""
        self._ended[sequence] = [*table], self._number
        if len(self._ended) > _ENDED:
            self._ended.popitem(last=False)

    def expect(self, sequence: SequenceId, returns_s: float) -> None:
        """The session of a sequence that has ended is likely back so long after that."""
        table, number = self._ended.pop(sequence, ([], 0))
        for page in table:
            entry = self._pages[page]
            if page in self._cached and number < entry.number <= number + len(table):
                entry.returns_s = returns_s
                self._file(page)

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
        for sequence in self.grants.of(session):
            self.let_go(sequence)
        dropped = shared = 0
        read = [page for page, entry in enumerate(self._pages) if session in entry.readers]
        # What continues a page was released before it.
        for page in sorted(read, key=lambda page: self._pages[page].number):
            entry = self._pages[page]
            if entry.state is PageState.CACHED and len(entry.readers) == 1:
                self._uncache(page)
                self._drop(page)
                dropped += 1
            else:
                entry.readers -= {session}
                shared += 1
        return dropped, shared

    def release(self, table: Iterable[int]) -> None:
        """Give back one reference to each page of a block table."""
        now = self._now()
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
                self._number += 1
                entry.state, entry.since, entry.number = PageState.CACHED, now, self._number
                entry.returns_s = UNKNOWN_RETURN_S
                self._cached.add(page)
                self._ungranted += page not in self.grants
                self._file(page)

    def drain_changes(self) -> tuple[tuple[PageId, ...], tuple[PageId, ...]]:
        """Page ids (stored, removed) since the last call, for the directory; each once, as it is now."""
        changed, self._changed = self._changed, {}
        stored = tuple(ident for ident, here in changed.items() if here)
        return stored, tuple(ident for ident, here in changed.items() if not here)

    def check(self) -> None:
        """Raise `InvariantViolation` 16 unless every page is in exactly one place, 11 unless grants are as they were
        given."""
        states = [entry.state for entry in self._pages]
        counted = Occupancy(*(states.count(state) for state in PageState))
        if counted != self.occupancy():
            raise InvariantViolation(16, f"pages counted {counted}, accounted {self.occupancy()}")
        if len(set(self._free)) != len(self._free) or not all(states[page] is PageState.FREE for page in self._free):
            raise InvariantViolation(16, "the free list holds a page twice, or one that is not free")
        self._check_cached(states)
        if self._by_id != {entry.id: page for page, entry in enumerate(self._pages) if entry.id is not None}:
            raise InvariantViolation(16, "the prefix cache and the ids of the pages differ")
        for page, entry in enumerate(self._pages):
            if (entry.references > 0) != (entry.state is PageState.OWNED):
                raise InvariantViolation(16, f"page {page} is {entry.state.value} with {entry.references} references")
            if entry.state in (PageState.FREE, PageState.LANDING) and entry.id is not None:
                raise InvariantViolation(16, f"page {page} bears an id while {entry.state.value}")

    def _check_cached(self, states: Sequence[PageState]) -> None:
        if self._cached != {page for page, state in enumerate(states) if state is PageState.CACHED}:
            raise InvariantViolation(16, "the pages that are cached are not those that may be evicted")
        leaves = [page for page in self._cached if not self._pages[page].children]
        if len(leaves) != len(self._leaves) or not all(page in self._leaves for page in leaves):
            raise InvariantViolation(16, "the eviction order lacks a leaf, or has a page that is none")
        self.grants.check()
        if self._ungranted != sum(page not in self.grants for page in self._cached):
            raise InvariantViolation(11, f"{self._ungranted} cached pages are accounted to be under no grant")

    def _pin(self, page: int) -> None:
        entry = self._pages[page]
        if entry.state is PageState.CACHED:
            self._uncache(page)
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
        page = self._leaves.take(self._now())
        if page in self.grants:
            if self._ungranted:
                told = f"page {page} of a grant is evicted before {self._ungranted} that are of none"
                raise InvariantViolation(11, told)
            self._ungranted += 1
            self.grants.lose(page)
        self._uncache(page)
        self._drop(page)

    def _file(self, page: int) -> None:
        """Put a cached page where it belongs in the eviction order."""
        entry = self._pages[page]
        if not entry.children:
            rank = Rank.of(entry.returns_s, entry.cost, granted=page in self.grants)
            self._leaves.add(page, rank, entry.since, entry.number)

    def _uncache(self, page: int) -> None:
        self._cached.remove(page)
        self._leaves.discard(page)
        self._ungranted -= page not in self.grants

    def _drop(self, page: int) -> None:
        ident, parent = self._pages[page].id, self._pages[page].parent
        assert ident is not None, "a cached page has an id"
        del self._by_id[ident]
        self._changed[ident] = False
        self._to_free(page)
        if parent is not None:
            before = self._pages[parent]
            before.children -= 1
            if before.state is PageState.CACHED:
                self._file(parent)

    def _to_free(self, page: int) -> None:
        self._pages[page] = _Page()
        self._free.append(page)
