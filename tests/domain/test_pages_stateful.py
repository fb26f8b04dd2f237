"""A page pool under any use, beside a model of it: nothing is lost, and the cache forgets leaf first, oldest first."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.domain.pages import ROOT, Occupancy, PagePool, extend_chain
from runtime.ids import PageId
from tests.scale import scaled

PAGES = 6
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=4)
WHICH = st.integers(0, 5)


@dataclass
class Held:
    """A sequence: one token fills a page, so its path is its chain."""

    chain: list[PageId]
    table: list[int]
    published: int
    landing: set[int] = field(default_factory=set)


class Pool(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.held: list[Held] = []
        self.references: Counter[int] = Counter()
        self.resident: dict[PageId, int] = {}
        self.parents: dict[PageId, PageId] = {}
        self.unused: list[PageId] = []

    @rule(path=PATHS, landing=st.booleans())
    def take(self, path: list[int], landing: bool) -> None:
        chain = extend_chain([], b"salt", path, 1, "f")
        self.parents.update(zip(chain, [ROOT, *chain], strict=False))
        hits = next((place for place, ident in enumerate(chain) if ident not in self.resident), len(chain))
        kept = [ident for ident in self.unused if ident not in chain[:hits]]
        free = PAGES - len(self.references) - len(self.unused)
        fresh = len(chain) - hits
        before = self.pool.occupancy()
        taken = self.pool.try_take(chain, len(chain), landing=landing)
        if fresh > free + len(kept):
            assert taken is None
            assert self.pool.occupancy() == before
            return
        assert taken is not None
        table, found = taken
        assert found == hits
        assert table[:hits] == [self.resident[ident] for ident in chain[:hits]]
        self.evict(kept, max(fresh - free, 0))
        self.references.update(table)
        self.held.append(Held(chain, table, hits, set(table[hits:]) if landing else set()))

    def evict(self, kept: list[PageId], count: int) -> None:
        for ident in kept[:count]:
            assert ident not in {self.parents[other] for other in self.resident}, "it is no leaf"
            del self.resident[ident]
        self.unused = kept[count:]

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def publish(self, which: int) -> None:
        held = self.held[which % len(self.held)]
        if held.published == len(held.chain):
            return
        place, ident = held.published, held.chain[held.published]
        page = held.table[place]
        if page in held.landing:
            self.pool.landed(page)
            held.landing.discard(page)
        bearer = self.pool.publish(page, ident, self.parents[ident])
        assert bearer == self.resident.get(ident, page)
        if bearer != page:
            del self.references[page]
            self.references[bearer] += 1
            held.table[place] = bearer
            if ident in self.unused:
                self.unused.remove(ident)
        self.resident[ident] = bearer
        held.published += 1

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        held = self.held.pop(which % len(self.held))
        self.pool.release(held.table)
        bears = {page: ident for ident, page in self.resident.items()}
        for page in reversed(held.table):
            self.references[page] -= 1
            if not self.references[page]:
                del self.references[page]
                if page in bears:
                    self.unused.append(bears[page])

    @invariant()
    def every_page_is_in_exactly_one_place(self) -> None:
        self.pool.check()
        landing = sum(len(held.landing) for held in self.held)
        owned = len(self.references) - landing
        cached = len(self.unused)
        assert self.pool.occupancy() == Occupancy(PAGES - landing - owned - cached, landing, owned, cached)

    @invariant()
    def what_is_known_can_be_found_from_its_beginning(self) -> None:
        assert {self.parents[ident] for ident in self.resident} <= {ROOT, *self.resident}


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=scaled(20, 500), stateful_step_count=40)
