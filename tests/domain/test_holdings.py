"""What a worker holds, as changes that a watcher can follow from anywhere."""

import random

from runtime.domain.holdings import MOST_IDS, Changes, Holdings, Tier
from runtime.ids import PageId


def page(number: int) -> PageId:
    return PageId(number.to_bytes(16, "big"))


class Watcher:
    """Knows what it was told, and that nothing is missing between."""

    def __init__(self) -> None:
        self.after = 0
        self.held: dict[Tier, set[PageId]] = {tier: set() for tier in Tier}

    def take(self, changes: Changes) -> None:
        assert changes.reset or changes.after == self.after, "a gap"
        if changes.reset:
            self.held = {tier: set() for tier in Tier}
        for moved in changes.moved:
            assert len(moved.stored) <= MOST_IDS
            self.held[moved.tier] -= set(moved.removed)
            self.held[moved.tier] |= set(moved.stored)
        self.after = changes.until


def test_a_watcher_that_knows_all_is_told_nothing() -> None:
    holdings = Holdings()
    assert list(holdings.since(0)) == []
    holdings.changed([page(1)], [])
    assert list(holdings.since(1)) == []


def test_a_new_watcher_begins_with_all_that_is_held() -> None:
    holdings = Holdings()
    holdings.changed([page(1), page(2)], [])
    holdings.changed([page(3)], [page(1)])
    (told,) = holdings.since(0)
    assert (told.reset, told.until) == (True, 2)
    assert [set(moved.stored) for moved in told.moved] == [{page(2), page(3)}]


def test_what_changes_while_a_watcher_is_told_comes_after_it() -> None:
    holdings, watcher = Holdings(), Watcher()
    holdings.changed(map(page, range(MOST_IDS + 1)), [])
    telling = holdings.since(0)
    watcher.take(next(telling))
    holdings.changed([page(99_999)], [page(0)])
    for changes in telling:
        watcher.take(changes)
    for changes in holdings.since(watcher.after):
        watcher.take(changes)
    assert watcher.held[Tier.POOL] == {page(99_999), *map(page, range(1, MOST_IDS + 1))}


def test_a_watcher_that_lags_too_far_begins_anew() -> None:
    holdings, watcher = Holdings(), Watcher()
    holdings.changed([page(0)], [])
    for changes in holdings.since(0):
        watcher.take(changes)
    for start in range(1, 200_001, 1000):
        holdings.changed(map(page, range(start, start + 1000)), [page(start - 1)])
    told = list(holdings.since(watcher.after))
    assert told[0].reset
    assert len(told) > 1
    for changes in told:
        watcher.take(changes)
    assert len(watcher.held[Tier.POOL]) == 200_001 - 200


def test_a_number_that_was_never_given_begins_anew() -> None:
    holdings = Holdings()
    holdings.changed([page(1)], [])
    assert [changes.reset for changes in holdings.since(77)] == [True]


def test_whatever_changes_and_whenever_watchers_ask_they_know_what_is_held() -> None:
    rng = random.Random(5)
    holdings, watchers = Holdings(), [Watcher() for _ in range(3)]
    held: dict[Tier, set[PageId]] = {tier: set() for tier in Tier}
    for _ in range(2000):
        tier = rng.choice(list(Tier))
        stored = {page(rng.randrange(300)) for _ in range(rng.randrange(6))} - held[tier]
        removed = set(rng.sample(sorted(held[tier]), min(len(held[tier]), rng.randrange(6))))
        holdings.changed(stored, removed, tier)
        held[tier] = (held[tier] - removed) | stored
        for watcher in watchers:
            if rng.random() < 0.2:
                for changes in holdings.since(watcher.after):
                    watcher.take(changes)
                assert watcher.held == held
