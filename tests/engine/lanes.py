"""Feeds a runner chunk by chunk, without an engine."""

import random
from collections.abc import Sequence

from runtime.domain.steps import Chunk
from runtime.ids import SequenceId

PAGES = 128


class Lane:
    """One sequence on a runner, fed chunk by chunk into pages that lie scattered over the pool."""

    def __init__(self, name: str, tokens: Sequence[int], pages: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.computed = 0
        self._id = SequenceId(name)
        self._table = tuple(pages)

    def chunk(self, size: int) -> Chunk:
        start, self.computed = self.computed, min(self.computed + size, len(self.tokens))
        last = self.computed == len(self.tokens)
        return Chunk(self._id, tuple(self.tokens[start : self.computed]), start, self._table, sample=last)


def scattered(count: int, lanes: int, seed: int = 0) -> list[list[int]]:
    pages = random.Random(seed).sample(range(PAGES), count * lanes)
    return [pages[lane * count : (lane + 1) * count] for lane in range(lanes)]
