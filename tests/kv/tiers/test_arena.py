"""The host tier: copies of pages in one piece of memory."""

from runtime.domain.tiers import Tier
from runtime.kv.tiers.arena import Arena
from tests.kv.tiers.pages import CODEC, SPEC, frame, ident, payload


def arena(pages: int) -> Arena:
    return Arena(CODEC, pages * CODEC.page_bytes)


def test_a_page_comes_back_as_it_was() -> None:
    tier = arena(2)
    tier.put(frame(7))
    found = tier.get(ident(7))
    assert found is not None
    assert (found.page, found.index, found.valid_tokens) == (ident(7), 7, SPEC.page_tokens)
    assert bytes(found.payload) == payload(7)
    assert tier.get(ident(8)) is None


def test_the_least_recently_used_makes_room_and_the_memory_never_grows() -> None:
    tier = arena(2)
    for number in (0, 1):
        tier.put(frame(number))
    tier.touch(ident(0))
    tier.put(frame(2))
    assert [ident(number) in tier for number in range(3)] == [True, False, True]
    for number in range(100):
        tier.put(frame(number))
    report = tier.report()
    assert (report.tier, report.pages, report.capacity_bytes) == (Tier.HOST, 2, 2 * CODEC.page_bytes)
    assert [bytes(found.payload) for number in (98, 99) if (found := tier.get(ident(number)))] == [
        payload(98),
        payload(99),
    ]


def test_reading_counts_as_use() -> None:
    tier = arena(2)
    tier.put(frame(0))
    tier.put(frame(1))
    assert tier.get(ident(0)) is not None
    tier.put(frame(2))
    assert ident(0) in tier


def test_a_page_that_is_spoilt_in_memory_is_counted_and_gone() -> None:
    tier = arena(1)
    tier.put(frame(0))
    tier._memory[200] ^= 1
    assert tier.get(ident(0)) is None
    assert ident(0) not in tier
    assert tier.report().failures == (("checksum", 1),)
    tier.put(frame(0))
    assert tier.get(ident(0)) is not None


def test_memory_that_is_too_small_for_a_page_holds_none() -> None:
    tier = Arena(CODEC, CODEC.page_bytes - 1)
    tier.put(frame(0))
    assert ident(0) not in tier
