"""What the directory says of a prompt: how much of it each worker has, and how near at hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.domain.holdings import Tier
from runtime.domain.routing import Asked
from runtime.ids import BootId
from runtime.router.chains import Chains
from runtime.router.curves import Ints
from runtime.router.index import Names, PageIndex


@dataclass(frozen=True, slots=True)
class Held:
    """Of a prompt's first tokens, how many each worker has in its pool; in its pool or its host's memory; and there or
    in the store that all reach."""

    pool: Ints
    host: Ints
    cold: Ints


class Holders:
    def __init__(self, index: PageIndex, chains: Chains, page_tokens: int) -> None:
        self._index = index
        self._chains = chains
        self._page_tokens = page_tokens

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        """None when nothing of it is known. A prompt's page ids are only computed where somebody holds any page."""
        if not self._index.pages:
            return None
        names = self._chains.names(asked.tenant, asked.tokens)
        return None if names is None else held_pages(self._index, names, boots, self._page_tokens)


def held_pages(index: PageIndex, names: Names, boots: Sequence[BootId], page_tokens: int) -> Held:
    """Of a chain of pages by their names."""
    numbers = index.known(boots)
    pool = index.prefix(names, numbers, Tier.POOL) * page_tokens
    if not index.tiered:
        return Held(pool, pool, pool)
    host = np.maximum(pool, index.prefix(names, numbers, Tier.POOL | Tier.HOST) * page_tokens)
    stored = index.prefix(names, np.zeros(1, dtype=np.int64), Tier.COLD) * page_tokens
    return Held(pool, host, np.maximum(host, stored[0]))
