"""Which page of the prefix cache is forgotten next: that whose content is worth least. Never what a page holds.

A page is worth what it takes to have it again, over the time until it is likely wanted: as long as whoever used it last
usually stays away, and once he is overdue, as long as he is away already, for who has been away long stays away long.
Pages under a grant come after all others. Only what nothing in the pool continues is here, so no eviction leaves a page
that nobody can find.

Pages are ranked by powers of two of both, and within a rank the one that was used longest ago goes first: so finding
the next looks at one page of each rank.
"""

import heapq
import math
from dataclasses import dataclass

from runtime.domain.records import quick

UNKNOWN_RETURN_S = 60.0
"""How long somebody stays away of whom nothing is known."""
# Attention to so many tokens takes about as long as all else that a model does for a token.
_ATTENTION_LIKE_THE_REST = 16_384
_SHORTEST, _LONGEST = -4, 24
_FEW = 256


def recomputing(start: int) -> float:
    """What a token at this position of its context costs, in tokens at a beginning."""
    return 1 + start / _ATTENTION_LIKE_THE_REST


@quick
@dataclass(frozen=True, slots=True)
class Rank:
    """`returns` and `cost` are powers of two: of seconds, and of tokens' costs."""

    granted: bool
    returns: int
    cost: int

    @staticmethod
    def of(returns_s: float, cost: float, *, granted: bool) -> "Rank":
        returns = min(max(math.frexp(returns_s)[1], _SHORTEST), _LONGEST)
        return Rank(granted, returns, math.frexp(cost)[1])

    def waste(self, away_s: float) -> float:
        """Seconds that it takes room in vain, for each token's cost that it saves."""
        return max(math.ldexp(1.0, self.returns), away_s) / math.ldexp(1.0, self.cost)


class EvictionOrder:
    def __init__(self) -> None:
        # An entry of a heap counts while it is what is said here of its page.
        self._places: dict[int, tuple[Rank, float, int]] = {}
        self._heaps: dict[Rank, list[tuple[float, int, int]]] = {}
        self._entries = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, page: int) -> bool:
        return page in self._places

    def add(self, page: int, rank: Rank, since: float, number: int) -> None:
        """Unused since then; of pages that came to be so together the one of the smaller number goes first."""
        self._places[page] = rank, since, number
        heapq.heappush(self._heaps.setdefault(rank, []), (since, number, page))
        self._entries += 1
        if self._entries > 2 * len(self._places) + _FEW:
            self._tidy()

    def discard(self, page: int) -> None:
        self._places.pop(page, None)

    def take(self, now: float) -> int:
        """Remove and return the page to forget; there must be one."""
        heads = [(rank, head) for rank in tuple(self._heaps) if (head := self._head(rank)) is not None]
        _, (_, _, page) = min(heads, key=lambda each: (each[0].granted, -each[0].waste(now - each[1][0]), each[1][1]))
        del self._places[page]
        return page

    def _head(self, rank: Rank) -> tuple[float, int, int] | None:
        heap = self._heaps[rank]
        while heap:
            since, number, page = heap[0]
            if self._places.get(page) == (rank, since, number):
                return heap[0]
            heapq.heappop(heap)
            self._entries -= 1
        del self._heaps[rank]
        return None

    def _tidy(self) -> None:
        """Drop what does not count any more."""
        self._heaps = {}
        for page, (rank, since, number) in self._places.items():
            self._heaps.setdefault(rank, []).append((since, number, page))
        for heap in self._heaps.values():
            heapq.heapify(heap)
        self._entries = len(self._places)
