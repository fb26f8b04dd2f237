"""Which worker holds which KV page: one table for all of them. Never knows what a page is, and is never asked for
truth: a worker that is said to hold a page may have dropped it, and one that does may not be known to.

An entry is (page, holder), named by 64 bits of the page's id mixed with the holder's number, so that whether somebody
holds a page is one look, however many others do. Entries lie in buckets of eight, a line of the CPU's cache each; a
full bucket is followed by the next one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.domain.holdings import Tier
from runtime.ids import BootId, PageId
from runtime.router.curves import Ints

Names = NDArray[np.uint64]
_WIDTH = 8
_FULLEST = 0.6
_FRESH = 0.45
_EMPTY, _GONE, _FIRST = 0, 1, 2
_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_WHICH = 0x0001020304050607
_AT_ONCE = 1 << 20
# Chains and holders whose product is no more are looked at page by page; of others so many pages at once.
_FLAT = 4096
_LOOKS = 1024
# How exactly it is told what is held of a long chain, but for those who have most.
_SHARE = 128
_BEST = 16


def names_of(pages: Sequence[PageId]) -> Names:
    """Of 16-byte ids, the halves that the index goes by."""
    return np.frombuffer(b"".join(pages), dtype="<u8")[::2].astype(np.uint64)


def _leap(low: Ints, high: Ints, count: int, near: int) -> Ints:
    """Which page of a chain to look at, for holders that have `low` of it and lack the one at `high`: by leaps and then
    by halves."""
    look: Ints = np.where(high > count, np.minimum(np.maximum(2 * low, near), count), (low + high) // 2)
    return look


class PageIndex:
    """`pages` counts the entries, `members` how often holders came and went; `tiers` are all in which a page ever
    was."""

    def __init__(self) -> None:
        self._numbers: dict[BootId, int] = {}
        self._salts = np.zeros(16, dtype=np.uint64)
        self._alive = np.zeros(16, dtype=bool)
        self._count = 0
        self._free: list[int] = []
        self._generations = 0
        self.pages = 0
        self.members = 0
        self.tiers = Tier(0)
        self._make(16)

    @property
    def bytes(self) -> int:
        """Of memory, for all entries."""
        return self._keys.nbytes + self._holders.nbytes + self._tiers.nbytes

    def number(self, boot: BootId) -> int:
        """The holder's, made when it is new."""
        known = self._numbers.get(boot)
        return self._new(boot) if known is None else known

    def known(self, boots: Sequence[BootId]) -> Ints:
        """The numbers of holders; -1 for one that holds nothing."""
        return np.array([self._numbers.get(boot, -1) for boot in boots], dtype=np.int64)

    def stored(self, holder: int, names: Names, tier: Tier) -> None:
        keys = np.unique(self._keys_of(names, holder))
        self.tiers |= tier
        places = self._find(keys)
        known = places[places >= 0]
        self._tiers.reshape(-1)[known] |= np.uint8(tier)
        fresh = keys[places < 0]
        self._make_room(len(fresh))
        self._place(fresh, np.full(len(fresh), holder, np.uint32), np.full(len(fresh), tier, np.uint8))
        self.pages += len(fresh)

    def removed(self, holder: int, names: Names, tier: Tier) -> None:
        places = np.unique(self._find(self._keys_of(names, holder)))
        places = places[places >= 0]
        tiers, keys = self._tiers.reshape(-1), self._keys.reshape(-1)
        tiers[places] &= ~np.uint8(tier)
        gone = places[tiers[places] == 0]
        keys[gone] = _GONE
        self.pages -= len(gone)

    def forget(self, boot: BootId) -> None:
        """What this holder has is of no use to anybody any more; its entries go when the table is next made anew."""
        number = self._numbers.pop(boot, None)
        if number is None:
            return
        self._alive[number] = False
        self.members += 1
        self.pages -= int(np.count_nonzero((self._holders == number) & (self._keys >= _FIRST)))

    def prefix(self, names: Names, holders: Ints, tiers: int, known: Ints | None = None) -> Ints:
        """Of a chain of pages, how many of its first each of `holders` has in any of `tiers`; nothing for -1. `known`
        is how many each has at the least.

        Whoever has a page of a chain is taken to have all before it, as pools keep them.
        """
        found = np.zeros(len(holders), dtype=np.int64) if known is None else known.copy()
        asked = np.flatnonzero((holders >= 0) & (found < len(names)))
        if not len(asked) or not self.pages:
            return found
        salts = self._salts[holders[asked]]
        first = int(found[asked].min())
        rest = names[first:]
        if len(rest) * len(asked) <= _FLAT:
            has = self._has((rest[None] ^ salts[:, None]).reshape(-1), tiers).reshape(len(asked), len(rest))
            found[asked] = first + np.where(has.all(axis=1), len(rest), has.argmin(axis=1))
            return found
        found[asked] = self._search(names, salts, tiers, found[asked])
        return found

    def _search(self, names: Names, salts: Names, tiers: int, has: Ints) -> Ints:
        """Of those who have most the exact number of pages, of all others within a share of the chain; beyond those
        that each `has`."""
        count, near = len(names), max(len(names) // _SHARE, 1)
        lacks = np.full(len(salts), count + 1, dtype=np.int64)
        left = np.arange(len(salts))
        for close in (near, 1):
            while len(left):
                low, high = has[left], lacks[left]
                teeth = min(_LOOKS // len(left), int((high - low).max()) - 1)
                if teeth > 1:
                    low, high = self._comb(names, salts[left], tiers, low, high, teeth)
                else:
                    look = _leap(low, high, count, near)
                    there = self._has(names[look - 1] ^ salts[left], tiers)
                    low, high = np.where(there, look, low), np.where(there, high, look)
                has[left], lacks[left] = low, high
                left = left[high - low > close]
            left = np.argsort(-has, kind="stable")[:_BEST]
            left = left[lacks[left] - has[left] > 1]
        return has

    def _comb(self, names: Names, salts: Names, tiers: int, low: Ints, high: Ints, teeth: int) -> tuple[Ints, Ints]:
        """As many looks at once for each of a few holders; what they have and what they lack after that."""
        look = (low + 1)[:, None] + (high - low - 1)[:, None] * np.arange(teeth) // teeth
        there = self._has((names[look - 1] ^ salts[:, None]).reshape(-1), tiers).reshape(look.shape)
        whole, first, rows = there.all(axis=1), there.argmin(axis=1), np.arange(len(low))
        has = np.where(whole, look[:, -1], np.where(first > 0, look[rows, first - 1], low))
        return has, np.where(whole, high, look[rows, first])

    def _has(self, keys: Names, tiers: int) -> NDArray[np.bool_]:
        """Which of the keys are there in one of the tiers: what most looks want to know, and no more."""
        keys = np.maximum(keys, np.uint64(_FIRST))
        some = None if self.tiers & ~tiers == 0 else np.uint8(tiers)
        bucket = self._bucket(keys)
        there, on = self._look(keys, bucket, some)
        left = np.flatnonzero(on)
        while len(left):
            keys, bucket = keys[on], (bucket[on] + 1) % len(self._keys)
            hit, on = self._look(keys, bucket, some)
            there[left[hit]] = True
            left = left[on]
        return there

    def _look(self, keys: Names, bucket: Ints, tiers: np.uint8 | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which keys are in their buckets, in one of the tiers or in any; and which may be in the next ones."""
        lines = self._keys.take(bucket, axis=0)
        same = (lines == keys[:, None]).view(np.uint64).reshape(-1)
        found: NDArray[np.bool_] = same != 0
        on = ~found & (lines[:, -1] != _EMPTY)
        if tiers is None:
            return found, on
        # Of its eight bytes one at the most is one: the product's highest byte is the number of that.
        slot = ((same * np.uint64(_WHICH)) >> np.uint64(56)).astype(np.int64)
        there = (self._tiers.reshape(-1).take(bucket * _WIDTH + slot) & tiers) != 0
        return found & there, on

    def _find(self, keys: Names) -> Ints:
        """Where each key is; -1 where it is not."""
        bucket = self._bucket(keys)
        lines = self._keys[bucket]
        hit = lines == keys[:, None]
        place = hit.argmax(axis=1)
        there = hit.any(axis=1)
        found = np.where(there, bucket * _WIDTH + place, -1)
        left = np.flatnonzero(~there & (lines[:, -1] != _EMPTY))
        while len(left):
            bucket[left] = (bucket[left] + 1) % len(self._keys)
            lines = self._keys[bucket[left]]
            hit = lines == keys[left, None]
            there = hit.any(axis=1)
            found[left[there]] = bucket[left[there]] * _WIDTH + hit.argmax(axis=1)[there]
            left = left[~there & (lines[:, -1] != _EMPTY)]
        return found

    def _place(self, keys: Names, holders: NDArray[np.uint32], tiers: NDArray[np.uint8]) -> None:
        """Put in keys that are not there, each into the first bucket with room, from its own on."""
        self._used += len(keys)
        bucket = self._bucket(keys)
        while len(keys):
            order = np.argsort(bucket, kind="stable")
            bucket, keys, holders, tiers = bucket[order], keys[order], holders[order], tiers[order]
            rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
            slot = np.count_nonzero(self._keys[bucket], axis=1) + rank
            fits = slot < _WIDTH
            places = bucket[fits] * _WIDTH + slot[fits]
            self._keys.reshape(-1)[places] = keys[fits]
            self._holders.reshape(-1)[places] = holders[fits]
            self._tiers.reshape(-1)[places] = tiers[fits]
            bucket = (bucket[~fits] + 1) % len(self._keys)
            keys, holders, tiers = keys[~fits], holders[~fits], tiers[~fits]

    def _bucket(self, keys: Names) -> Ints:
        high = (keys * np.uint64(_MIX)) >> np.uint64(32)
        return ((high * np.uint64(len(self._keys))) >> np.uint64(32)).astype(np.int64)

    def _keys_of(self, names: Names, holder: int) -> Names:
        keys: Names = np.maximum(names ^ self._salts[holder], np.uint64(_FIRST))
        return keys

    def _make_room(self, count: int) -> None:
        if self._used + count <= _FULLEST * _WIDTH * len(self._keys):
            return
        keys, holders, tiers = self._keys.reshape(-1), self._holders.reshape(-1), self._tiers.reshape(-1)
        stays = np.flatnonzero((keys >= _FIRST) & self._alive[holders])
        self._make(int((len(stays) + count) / _FRESH / _WIDTH) + 1)
        for start in range(0, len(stays), _AT_ONCE):
            some = stays[start : start + _AT_ONCE]
            self._place(keys[some], holders[some], tiers[some])
        # No entry bears the number of one who was forgotten any more.
        self._free = [int(each) for each in np.flatnonzero(~self._alive[: self._count])]

    def _make(self, buckets: int) -> None:
        self._keys = np.zeros((buckets, _WIDTH), dtype=np.uint64)
        self._holders = np.zeros((buckets, _WIDTH), dtype=np.uint32)
        self._tiers = np.zeros((buckets, _WIDTH), dtype=np.uint8)
        self._used = 0

    def _new(self, boot: BootId) -> int:
        number = self._free.pop() if self._free else self._count
        self._count = max(self._count, number + 1)
        if number >= len(self._salts):
            self._salts = np.concatenate([self._salts, np.zeros_like(self._salts)])
            self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])
        self._generations += 1
        self._salts[number] = self._generations * _MIX & _MASK
        self._alive[number] = True
        self._numbers[boot] = number
        self.members += 1
        return number
