"""Pages: what names them, who holds them, and in which order the cache forgets them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.pages import ROOT, Occupancy, PagePool, extend_chain, page_id, pages_for
from runtime.errors import InvariantViolation
from runtime.ids import PageId

FINGERPRINT = "f" * 32


def chain_of(tokens: Sequence[int], salt: bytes = b"salt", page_tokens: int = 4) -> list[PageId]:
    return extend_chain([], salt, tokens, page_tokens, FINGERPRINT)


def filled(pool: PagePool, chain: Sequence[PageId]) -> list[int]:
    """The block table of a sequence that computed all pages of `chain`."""
    taken = pool.try_take(chain, len(chain))
    assert taken is not None
    parents = [ROOT, *chain]
    return [pool.publish(*each) for each in zip(taken[0], chain, parents, strict=False)]


def test_the_identity_of_a_page_is_the_same_for_ever() -> None:
    # Workers of two versions share pages: when this changes, `page_tokens` or the fingerprint has to change with it.
    first = page_id(b"salt", ROOT, range(32), 32, FINGERPRINT)
    assert first.hex() == "284d60640e0f058ce719df5d2ac21d85"
    assert page_id(b"salt", first, (1, 2, 3), 32, FINGERPRINT).hex() == "cbbdf073f2641e55159a8f220ee7044c"


@pytest.mark.parametrize(
    "other",
    [
        page_id(b"another tenant", ROOT, (1, 2, 3, 4), 4, FINGERPRINT),
        page_id(b"salt", PageId(b"p" * 16), (1, 2, 3, 4), 4, FINGERPRINT),
        page_id(b"salt", ROOT, (1, 2, 3, 5), 4, FINGERPRINT),
        page_id(b"salt", ROOT, (1, 2, 3, 4), 8, FINGERPRINT),
        page_id(b"salt", ROOT, (1, 2, 3, 4), 4, "e" * 32),
        page_id(b"salt", ROOT, (1, 2, 3), 4, FINGERPRINT),
    ],
    ids=["tenant", "parent", "tokens", "page size", "model", "partial tail"],
)
def test_whatever_differs_gives_a_page_another_identity(other: PageId) -> None:
    assert other != page_id(b"salt", ROOT, (1, 2, 3, 4), 4, FINGERPRINT)


def test_token_ids_cannot_pose_as_the_identity_of_a_parent() -> None:
    parent = PageId(b"p" * 16)
    posing = tuple(int.from_bytes(parent[at : at + 4], "little") for at in range(0, 16, 4))
    assert page_id(b"salt", ROOT, (*posing, 7), 32, FINGERPRINT) != page_id(b"salt", parent, (7,), 32, FINGERPRINT)


def test_a_chain_grows_by_full_pages_only_and_keeps_what_it_has() -> None:
    chain = chain_of(range(7))
    assert len(chain) == 1
    assert extend_chain(list(chain), b"salt", range(12), 4, FINGERPRINT)[:1] == chain
    assert chain_of(range(12))[:1] == chain


@given(st.integers(0, 300), st.integers(1, 64))
def test_pages_cover_their_tokens_and_not_a_page_more(tokens: int, page_tokens: int) -> None:
    pages = pages_for(tokens, page_tokens)
    assert (pages - 1) * page_tokens < tokens <= pages * page_tokens or pages == tokens == 0


def test_a_published_page_is_found_by_whoever_continues_it() -> None:
    pool, chain = PagePool(4), chain_of(range(8))
    table = filled(pool, chain)
    assert pool.try_take([*chain, PageId(b"x" * 16)], 3) == ([*table, 2], 2)


def test_pages_beyond_a_gap_are_not_found() -> None:
    pool, chain = PagePool(4), chain_of(range(12))
    (page,), _ = pool.try_take((), 1) or ([], 0)
    pool.publish(page, chain[2])
    assert pool.match(chain) == 0


def test_no_room_changes_nothing() -> None:
    pool, chain = PagePool(3), chain_of(range(8))
    pool.release(filled(pool, chain))
    held = pool.try_take((), 1)
    before = pool.occupancy()
    # Its two cached pages are hits, so they cannot be evicted for the other two as well.
    assert pool.try_take(chain, 4) is None
    assert pool.occupancy() == before
    assert pool.match(chain) == 2
    assert held == ([2], 0)
    pool.check()


def test_the_second_copy_of_a_content_is_given_up_for_the_first() -> None:
    pool, chain = PagePool(4), chain_of(range(4))
    (first, second), _ = pool.try_take((), 2) or ([], 0)
    assert pool.publish(first, chain[0]) == first
    assert pool.publish(second, chain[0]) == first
    assert pool.occupancy() == Occupancy(free=3, landing=0, owned=1, cached=0)
    pool.release([first])
    assert pool.occupancy().owned == 1, "the other sequence still holds it"
    pool.check()


def test_publishing_again_changes_nothing() -> None:
    pool, chain = PagePool(2), chain_of(range(4))
    (page,) = filled(pool, chain)
    assert pool.publish(page, chain[0]) == page
    pool.check()


def test_the_least_recently_used_page_goes_first_and_a_page_never_before_those_that_continue_it() -> None:
    pool = PagePool(4)
    old, young = chain_of(range(8)), chain_of(range(100, 108))
    pool.release(filled(pool, old))
    pool.release(filled(pool, young))
    left = []
    for _ in range(4):
        pool.try_take((), 1)
        left.append((pool.match(old), pool.match(young)))
    assert left == [(1, 2), (0, 2), (0, 1), (0, 0)]


def test_a_shared_beginning_outlives_what_only_one_sequence_had() -> None:
    pool = PagePool(4)
    one, other = chain_of([1] * 4 + [2] * 4), chain_of([1] * 4 + [3] * 4)
    tables = [filled(pool, one), filled(pool, other)]
    for table in tables:
        pool.release(table)
    for _ in range(3):
        pool.try_take((), 1)
    assert (pool.match(one), pool.match(other)) == (1, 1)


def test_used_again_a_page_becomes_the_youngest() -> None:
    pool = PagePool(2)
    one, other = chain_of(range(4)), chain_of(range(100, 104))
    for chain in (one, other, one):
        taken = pool.try_take(chain, 1)
        assert taken is not None
        pool.release([pool.publish(taken[0][0], chain[0])])
    pool.try_take((), 1)
    assert (pool.match(one), pool.match(other)) == (1, 0)


def test_a_page_without_identity_is_free_at_once() -> None:
    pool = PagePool(2)
    taken = pool.try_take((), 2)
    assert taken is not None
    pool.release(taken[0])
    assert pool.occupancy() == Occupancy(free=2, landing=0, owned=0, cached=0)


def test_a_page_that_awaits_its_frame_is_landing_until_it_landed() -> None:
    pool = PagePool(2)
    taken = pool.try_take((), 2, landing=True)
    assert taken == ([0, 1], 0)
    pool.landed(0)
    assert pool.occupancy() == Occupancy(free=0, landing=1, owned=1, cached=0)
    pool.release([0, 1])
    assert pool.occupancy().free == 2


def test_changes_tell_what_is_here_now_and_each_once() -> None:
    pool, chain = PagePool(1), chain_of(range(4))
    pool.release(filled(pool, chain))
    assert pool.drain_changes() == ((chain[0],), ())
    pool.try_take((), 1)
    assert pool.drain_changes() == ((), (chain[0],))
    pool.release([0])
    filled(pool, chain)
    pool.release([0])
    pool.try_take((), 1)
    assert pool.drain_changes() == ((), (chain[0],)), "stored and removed since: it is not here"
    assert pool.drain_changes() == ((), ())


def test_released_landing_cannot_be_filled() -> None:
    pool = PagePool(1)
    pool.try_take((), 1, landing=True)
    pool.release([0])
    with pytest.raises(InvariantViolation, match="page 0 landed while free"):
        pool.landed(0)


def test_a_page_cannot_be_released_twice() -> None:
    pool = PagePool(1)
    pool.try_take((), 1)
    pool.release([0])
    with pytest.raises(InvariantViolation, match="released while free"):
        pool.release([0])


def test_a_page_has_one_identity_and_only_an_owned_page_has_any() -> None:
    pool = PagePool(2)
    with pytest.raises(InvariantViolation, match="published while free"):
        pool.publish(0, PageId(b"a" * 16))
    pool.try_take((), 1)
    pool.publish(0, PageId(b"a" * 16))
    with pytest.raises(InvariantViolation, match="under a second id"):
        pool.publish(0, PageId(b"b" * 16))


@pytest.mark.parametrize("damage", ["count", "free twice", "cached", "leaf", "id"])
def test_check_finds_pages_that_are_in_two_places_or_none(damage: str) -> None:
    pool, chain = PagePool(3), chain_of(range(4))
    pool.release(filled(pool, chain))
    pool.check()
    match damage:
        case "count":
            pool._landing += 1
        case "free twice":
            pool._free[0] = pool._free[1]
        case "cached":
            pool._cached = {2}
        case "leaf":
            pool._leaves.discard(0)
        case "id":
            pool._by_id.clear()
    with pytest.raises(InvariantViolation, match="invariant 16"):
        pool.check()
