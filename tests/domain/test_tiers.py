"""What a store lets go, and what waits to be written behind."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.pages import ROOT
from runtime.domain.readers import NOBODY, reader_of
from runtime.domain.steps import Filled
from runtime.domain.tiers import Backlog, Stored, Wanted, collectable, wanted_of
from runtime.ids import PageId, SessionId


def page(number: int) -> PageId:
    return PageId(number.to_bytes(16, "big"))


def chain(numbers: range, used: float, parent: PageId = ROOT) -> list[Stored]:
    """Pages that continue each other, of 10 bytes each."""
    parents = (parent, *map(page, numbers))
    return [Stored(page(number), parents[place], 10, used) for place, number in enumerate(numbers)]


def test_what_was_not_used_for_long_goes_the_end_of_a_chain_first() -> None:
    old, new = chain(range(3), used=1.0), chain(range(10, 12), used=5.0)
    assert collectable(old + new, before=5.0, most_bytes=1000) == [page(2), page(1), page(0)]


def test_beyond_the_bound_what_was_not_used_for_longest_goes() -> None:
    old, new = chain(range(3), used=1.0), chain(range(10, 12), used=5.0)
    assert collectable(new + old, before=0.0, most_bytes=30) == [page(2), page(1)]


def test_a_page_that_another_continues_stays_however_old_it_is() -> None:
    root = chain(range(1), used=1.0)
    assert collectable(root + chain(range(1, 3), 9.0, parent=page(0)), before=5.0, most_bytes=1000) == []


def test_a_page_whose_parent_is_gone_is_judged_alone() -> None:
    assert collectable(chain(range(1), 1.0, parent=page(99)), before=5.0, most_bytes=1000) == [page(0)]


TREES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.floats(0, 10)), max_size=30)


@given(TREES, st.floats(0, 10), st.integers(0, 100))
def test_of_any_forest_what_stays_is_found_from_its_roots_and_is_within_the_bound(
    drawn: list[tuple[int, int, float]], before: float, most: int
) -> None:
    pages = [
        Stored(page(place), page(drawn[place][0] % place) if place else ROOT, size, used)
        for place, (_, size, used) in enumerate(drawn)
    ]
    gone = collectable(pages, before=before, most_bytes=most)
    left = {each.page: each for each in pages if each.page not in set(gone)}
    assert len(set(gone)) == len(gone)
    assert all(each.parent == ROOT or each.parent in left for each in left.values())
    assert sum(each.size for each in left.values()) <= most
    leaves = set(left) - {each.parent for each in left.values()}
    assert all(left[leaf].used >= before for leaf in leaves)


def wanted(numbers: range, session: SessionId | None = None) -> list[Wanted]:
    return wanted_of(Filled(tuple(map(page, numbers)), 3, page(99), b"salt", session))


def test_each_page_is_wanted_with_what_it_continues_and_its_place() -> None:
    assert [(each.parent, each.index) for each in wanted(range(3))] == [(page(99), 3), (page(0), 4), (page(1), 5)]


def test_what_finds_no_room_is_dropped_with_all_that_continues_it() -> None:
    backlog = Backlog(2)
    backlog.add(wanted(range(5)))
    assert (len(backlog), backlog.dropped) == (2, 3)
    assert list(backlog.take(9)) == [page(0), page(1)]
    assert (len(backlog), backlog.dropped) == (0, 3)


def test_a_page_waits_once_and_the_oldest_is_taken_first() -> None:
    backlog = Backlog(8)
    backlog.add(wanted(range(2)))
    backlog.add(wanted(range(4)))
    assert list(backlog.take(3)) == [page(0), page(1), page(2)]
    assert list(backlog.take(3)) == [page(3)]
    assert backlog.dropped == 0


def test_a_secret_is_never_shown() -> None:
    assert "salt=" not in repr(wanted(range(1)))


def test_what_two_want_is_for_both_and_what_only_an_erased_one_wanted_waits_no_more() -> None:
    one, other = SessionId("sess-1"), SessionId("sess-2")
    backlog = Backlog(8)
    backlog.add(wanted(range(4), one))
    backlog.add(wanted(range(2), other))
    backlog.add(wanted(range(1)))
    backlog.forget(reader_of(one))
    left = {each.page: each.readers for each in backlog.take(8).values()}
    assert left == {page(0): {reader_of(other), NOBODY}, page(1): {reader_of(other)}}
