"""Who holds which pages, against a plain dictionary of sets."""

import hashlib
import random
import time

import numpy as np
import pytest

from runtime.domain.holdings import Tier
from runtime.ids import BootId, PageId
from runtime.router.curves import Ints
from runtime.router.holders import held_pages
from runtime.router.index import Names, PageIndex, names_of
from tests.scale import scaled

A, B, C = (BootId(name) for name in "abc")


def chain(name: str, pages: int) -> Names:
    return names_of(
        [PageId(hashlib.blake2b(f"{name}/{page}".encode(), digest_size=16).digest()) for page in range(pages)]
    )


def prefix(index: PageIndex, names: Names, *boots: BootId, tiers: int = Tier.POOL) -> list[int]:
    return [int(each) for each in index.prefix(names, index.known(boots), tiers)]


def test_an_empty_index_knows_of_nobody() -> None:
    index = PageIndex()
    assert prefix(index, chain("x", 5), A, B) == [0, 0]
    index.number(A)
    assert prefix(index, chain("x", 5), A, B) == [0, 0]


def test_everybody_has_the_longest_prefix_that_he_told_of() -> None:
    index, names = PageIndex(), chain("x", 100)
    index.stored(index.number(A), names[:60], Tier.POOL)
    index.stored(index.number(B), names[:1], Tier.POOL)
    index.stored(index.number(C), names, Tier.POOL)
    assert prefix(index, names, A, B, C, BootId("stranger")) == [60, 1, 100, 0]
    assert prefix(index, names[:40], C, A) == [40, 40]
    assert prefix(index, chain("y", 100), A, B, C) == [0, 0, 0]


def test_a_long_chain_of_many_holders_is_searched_as_a_short_one_is_looked_through() -> None:
    index, names = PageIndex(), chain("x", 4000)
    lengths = [0, 1, 2, 3, 1000, 2047, 2048, 2049, 3999, 4000]
    boots = [BootId(f"w{length}") for length in lengths]
    for boot, length in zip(boots, lengths, strict=True):
        index.stored(index.number(boot), names[:length], Tier.POOL)
    assert prefix(index, names, *boots) == lengths
    assert [prefix(index, names, boot)[0] for boot in boots] == lengths


def test_a_page_is_held_until_it_has_left_every_tier() -> None:
    index, names = PageIndex(), chain("x", 10)
    number = index.number(A)
    index.stored(number, names, Tier.POOL)
    index.stored(number, names[:6], Tier.HOST)
    index.removed(number, names[3:], Tier.POOL)
    assert prefix(index, names, A) == [3]
    assert prefix(index, names, A, tiers=Tier.POOL | Tier.HOST) == [6]
    index.removed(number, names, Tier.HOST)
    index.removed(number, names, Tier.POOL)
    assert (prefix(index, names, A, tiers=7), index.pages) == ([0], 0)


@pytest.mark.parametrize("workers", [1, 40])
def test_of_all_tiers_at_once_each_worker_has_what_it_has_in_each(workers: int) -> None:
    rng, names, index = random.Random(7), chain("x", 400), PageIndex()
    boots = [BootId(f"w{number}") for number in range(workers)]
    lengths = [[rng.randrange(401) for _ in Tier] for _ in boots]
    for boot, each in zip(boots, lengths, strict=True):
        for tier, length in zip(Tier, each, strict=True):
            index.stored(index.number(boot), names[:length], tier)
    held = held_pages(index, names, index.known(boots), 32)
    for place, told in enumerate((held.pool, held.host, held.cold), 1):
        truth = np.array([max(each[:place]) for each in lengths])
        best = np.argsort(-truth)[:8]
        assert (told[best] == 32 * truth[best]).all()
        assert (abs(told // 32 - truth) <= 400 // 64 + 1).all()


def test_what_is_told_twice_is_there_once() -> None:
    index, names = PageIndex(), chain("x", 10)
    for _ in range(3):
        index.stored(index.number(A), np.concatenate([names, names]), Tier.POOL)
    assert index.pages == 10
    index.removed(index.number(A), np.concatenate([names, names]), Tier.POOL)
    assert index.pages == 0


def test_who_was_forgotten_has_nothing_and_his_next_generation_begins_anew() -> None:
    index, names = PageIndex(), chain("x", 50)
    index.stored(index.number(A), names, Tier.POOL)
    index.stored(index.number(B), names, Tier.POOL)
    index.forget(A)
    assert (prefix(index, names, A, B), index.pages) == ([0, 50], 50)
    index.stored(index.number(A), names[:5], Tier.POOL)
    assert prefix(index, names, A, B) == [5, 50]


def test_workers_that_come_and_go_leave_nothing_behind() -> None:
    index = PageIndex()
    for generation in range(200):
        boot = BootId(f"boot-{generation}")
        index.stored(index.number(boot), chain(f"{generation}", 100), Tier.POOL)
        index.forget(boot)
    assert index.pages == 0
    assert index.bytes < 100_000


def test_it_says_what_a_dictionary_says() -> None:
    rng = random.Random(11)
    names = [chain(f"c{number}", 40) for number in range(12)]
    index, truth = PageIndex(), dict[tuple[BootId, int], int]()
    for _ in range(scaled(400, 4000)):
        boot, which, length = rng.choice([A, B, C]), rng.randrange(len(names)), rng.randrange(41)
        held = truth.get((boot, which), 0)
        if rng.random() < 0.02:
            index.forget(boot)
            truth = {key: value for key, value in truth.items() if key[0] != boot}
        elif length > held:
            index.stored(index.number(boot), names[which][held:length], Tier.POOL)
            truth[boot, which] = length
        else:
            index.removed(index.number(boot), names[which][length:held], Tier.POOL)
            truth[boot, which] = length
        assert index.pages == sum(truth.values())
        look = rng.randrange(len(names))
        assert prefix(index, names[look], A, B, C) == [truth.get((boot, look), 0) for boot in (A, B, C)]


def filled(pages: int, holders: int) -> tuple[PageIndex, Ints]:
    rng = np.random.default_rng(3)
    index = PageIndex()
    for number in range(holders):
        names = rng.integers(0, (1 << 64) - 1, pages // holders, np.uint64, endpoint=True)
        index.stored(index.number(BootId(f"w{number}")), names, Tier.POOL)
    return index, index.known([BootId(f"w{number}") for number in range(holders)])


def test_a_page_and_holder_costs_at_most_40_bytes() -> None:
    for pages in (300_000, 500_000, 700_000):
        index, _ = filled(pages, 10)
        assert index.bytes / index.pages <= 40, pages


@pytest.mark.parametrize("tier", [Tier.POOL, Tier.HOST, Tier.COLD])
def test_the_longest_prefix_of_120000_tokens_is_found_in_a_moment(tier: Tier) -> None:
    index, numbers = filled(500_000, 100)
    names = chain("long", 3750)
    index.stored(int(numbers[8]), names[:2000], Tier.POOL)
    index.stored(int(numbers[7]), names, tier)
    for number in numbers:
        index.stored(int(number), names[:16], Tier.POOL)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        found = index.prefix(names, numbers, Tier.POOL | tier)
        times.append(time.perf_counter() - began)
    assert (int(found.max()), int(found.argmax())) == (3750, 7)
    assert abs(int(found.min()) - 16) <= 3750 // 128
    assert sorted(times)[len(times) // 2] < 0.002, "measured on a quiet machine it is a quarter of that"


@pytest.mark.parametrize("pages", [0, 1, 7, 8, 9])
def test_a_chain_of_any_length_is_found(pages: int) -> None:
    index, names = PageIndex(), chain("x", 9)
    index.stored(index.number(A), names[:pages], Tier.POOL)
    assert prefix(index, names, A) == [pages]
