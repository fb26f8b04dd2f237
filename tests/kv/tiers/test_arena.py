"""The host tier: copies of pages in one piece of memory."""

from runtime.domain.pages import ROOT
from runtime.domain.tiers import Tier
from runtime.kv.tiers.arena import Arena
from tests.kv.tiers.pages import CODEC, PUBLIC, SPEC, frame, ident, parent, payload, reader


def arena(pages: int) -> Arena:
    return Arena(CODEC, pages * CODEC.page_bytes)


def put(tier: Arena, number: int, *sessions: str, alone: bool = True) -> None:
    """Page `number`, which continues nothing, or the one before it."""
    readers = frozenset(map(reader, sessions)) or PUBLIC
    tier.put(frame(number), ROOT if alone else parent(number), readers)


def test_a_page_comes_back_as_it_was() -> None:
    tier = arena(2)
    put(tier, 7)
    found = tier.get(ident(7))
    assert found is not None
    assert (found.page, found.index, found.valid_tokens) == (ident(7), 7, SPEC.page_tokens)
    assert bytes(found.payload) == payload(7)
    assert tier.get(ident(8)) is None


def test_the_least_recently_used_makes_room_and_the_memory_never_grows() -> None:
    tier = arena(2)
    for number in (0, 1):
        put(tier, number)
    tier.use(ident(0), PUBLIC)
    put(tier, 2)
    assert [ident(number) in tier for number in range(3)] == [True, False, True]
    for number in range(100):
        put(tier, number)
    report = tier.report()
    assert (report.tier, report.pages, report.capacity_bytes) == (Tier.HOST, 2, 2 * CODEC.page_bytes)
    assert [bytes(found.payload) for number in (98, 99) if (found := tier.get(ident(number)))] == [
        payload(98),
        payload(99),
    ]


def test_reading_counts_as_use() -> None:
    tier = arena(2)
    put(tier, 0)
    put(tier, 1)
    assert tier.get(ident(0)) is not None
    put(tier, 2)
    assert ident(0) in tier


def test_a_page_that_is_spoilt_in_memory_is_counted_and_gone() -> None:
    tier = arena(1)
    put(tier, 0)
    tier._memory[200] ^= 1
    assert tier.get(ident(0)) is None
    assert ident(0) not in tier
    assert tier.report().failures == (("checksum", 1),)
    put(tier, 0)
    assert tier.get(ident(0)) is not None


def test_memory_that_is_too_small_for_a_page_holds_none() -> None:
    tier = Arena(CODEC, CODEC.page_bytes - 1)
    put(tier, 0)
    assert ident(0) not in tier


def test_a_chain_makes_room_from_its_end() -> None:
    tier = arena(4)
    for number in (*range(4), *range(4)):
        put(tier, number, alone=False)
        tier.use(ident(number), PUBLIC)
    for number in (10, 20):
        put(tier, number)
    assert [number for number in range(4) if ident(number) in tier] == [0, 1]
    assert {ident(10), ident(20)} <= set(tier._pages)


def test_what_is_known_of_it_is_what_came_and_went() -> None:
    tier = arena(2)
    put(tier, 0)
    put(tier, 1)
    assert tier.changes.drain() == ((ident(0), ident(1)), ())
    put(tier, 2)
    tier.forget(reader("sess-1"))
    assert tier.changes.drain() == ((ident(2),), (ident(0),))
    assert tier.changes.drain() == ((), ())


def test_of_an_erased_session_no_byte_stays_but_what_others_have_used() -> None:
    tier = arena(8)
    for number in (0, 1, 2):
        put(tier, number, "sess-1", alone=False)
    put(tier, 3)
    tier.use(ident(0), frozenset({reader("sess-2")}))
    tier.use(ident(3), frozenset({reader("sess-1")}))
    assert all(payload(number)[:32] in bytes(tier._memory) for number in range(4))
    assert tier.forget(reader("sess-1")) == (2, 2)
    assert [payload(number)[:32] in bytes(tier._memory) for number in range(4)] == [True, False, False, True]
    assert [ident(number) in tier for number in range(4)] == [True, False, False, True]
    assert tier.forget(reader("sess-1")) == (0, 0)
    assert tier.forget(reader("sess-2")) == (1, 0)


def test_what_comes_late_of_an_erased_session_is_not_taken() -> None:
    tier = arena(8)
    tier.forget(reader("sess-1"))
    put(tier, 0, "sess-1")
    put(tier, 1, "sess-1", "sess-2")
    assert [ident(number) in tier for number in range(2)] == [False, True]
    tier.use(ident(1), frozenset({reader("sess-1")}))
    assert tier.forget(reader("sess-2")) == (1, 0)
