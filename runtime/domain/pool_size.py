"""How many pages of KV a worker has where nobody said: what its share of the free memory holds. Pure arithmetic.

Workers that start together see the same free memory, so each reckons with its part of it, even where it is alone yet.
"""

import math
from dataclasses import dataclass

from runtime.domain.pages import pages_for

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker finds, and what its model asks: of `free` bytes `weights`, and `page_bytes` for every `page_tokens`
    tokens of KV, of which a context has `max_tokens` at most."""

    free: int
    weights: int
    page_bytes: int
    page_tokens: int
    max_tokens: int

    @property
    def context_pages(self) -> int:
        return pages_for(self.max_tokens, self.page_tokens)

    def taken(self, pages: int) -> int:
        """Bytes of the weights and of so many pages; a pool has one more, of zeros."""
        return self.weights + (pages + 1) * self.page_bytes


@dataclass(frozen=True, slots=True)
class Sharing:
    """`workers` live in the same memory: of what each one's part leaves beside its weights, `share` is for pages.
    `max_running` sequences decode together in each."""

    share: float
    workers: int
    max_running: int


@dataclass(frozen=True, slots=True)
class PoolSize:
    """`account` says how many `pages` came to be, for people."""

    pages: int
    account: str


def least_pages(room: Room, max_running: int) -> int:
    """A page for each sequence that decodes, and one whole context."""
    return max(max_running, room.context_pages)


def sized_by_share(room: Room, sharing: Sharing) -> PoolSize:
    """No fewer pages than the least that work, whatever the share is; no more than can be of use, which is a whole
    context for every sequence that decodes."""
    part = room.free // sharing.workers - room.weights
    by_share = math.floor(sharing.share * part) // room.page_bytes - 1
    least, most = least_pages(room, sharing.max_running), sharing.max_running * room.context_pages
    pages = min(most, max(least, by_share))
    among = f", a part of {sharing.workers}," if sharing.workers > 1 else ""
    account = f"{sharing.share:g} of what {mib(room.free)} free{among} leave beside weights of {mib(room.weights)}"
    if pages == most:
        account = f"{sharing.max_running} contexts of {room.max_tokens} tokens, which is all that can be of use"
    elif pages > by_share:
        account = f"the least that work, more than {account}"
    return PoolSize(pages, f"{pages} pages, {mib(room.page_bytes * (pages + 1))}: {account}")


def mib(count: int) -> str:
    return f"{math.ceil(count / _MIB):,} MiB"
