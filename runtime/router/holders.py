"""What the directory says of a prompt: how much of it each worker has, and how near at hand."""

from collections.abc import Callable, Sequence
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
    in the store, as far as it knows: what others have written there it learns within a minute, and cannot load before.
    """

    pool: Ints
    host: Ints
    cold: Ints

    def at_least(self, tokens: Ints) -> "Held":
        return self._each(lambda tier: np.maximum(tier, tokens))

    def at_most(self, tokens: int) -> "Held":
        return self._each(lambda tier: np.minimum(tier, tokens))

    def times(self, tokens: int) -> "Held":
        return self._each(lambda tier: tier * tokens)

    def part(self, some: slice) -> "Held":
        return self._each(lambda tier: tier[some])

    def _each(self, change: Callable[[Ints], Ints]) -> "Held":
        """Tiers that are one array stay one: most prompts are in no slower memory."""
        pool = change(self.pool)
        host = pool if self.host is self.pool else change(self.host)
        return Held(pool, host, host if self.cold is self.host else change(self.cold))


class Holders:
    def __init__(self, index: PageIndex, chains: Chains, page_tokens: int) -> None:
        self._index = index
        self._chains = chains
        self._page_tokens = page_tokens
        self._boots: Sequence[BootId] = ()
        self._numbers = index.known(())
        self._members = 0

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        """None when nothing of it is known. A prompt's page ids are only computed where somebody holds any page."""
        if not self._index.pages:
            return None
        names = self._chains.names(asked.tenant, asked.tokens)
        if names is None:
            return None
        if boots is not self._boots or self._members != self._index.members:
            self._boots, self._members, self._numbers = boots, self._index.members, self._index.known(boots)
        return held_pages(self._index, names, self._numbers, self._page_tokens)


def held_pages(index: PageIndex, names: Names, numbers: Ints, page_tokens: int) -> Held:
    """Of a chain of pages by their names, and of holders by their numbers."""
    pool = index.prefix(names, numbers, Tier.POOL)
    host = cold = pool
    if Tier.HOST in index.tiers:
        host = cold = index.prefix(names, numbers, Tier.POOL | Tier.HOST, pool)
    if Tier.COLD in index.tiers:
        cold = index.prefix(names, numbers, Tier.POOL | Tier.HOST | Tier.COLD, host)
    held = Held(pool, host, cold)
    return held.times(page_tokens)
