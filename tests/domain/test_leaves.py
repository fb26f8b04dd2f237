"""What makes room in a tier: the ends of chains, the least recently used first."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.leaves import Leaves
from runtime.domain.pages import ROOT
from runtime.ids import PageId


def page(number: int) -> PageId:
    return PageId(number.to_bytes(16, "big"))


def chain(leaves: Leaves, *numbers: int) -> None:
    for number, before in zip(numbers, (None, *numbers[:-1]), strict=True):
        leaves.add(page(number), ROOT if before is None else page(before))


def test_chains_go_from_their_ends_the_one_that_was_not_used_for_longest_first() -> None:
    leaves = Leaves()
    chain(leaves, 1, 2, 3)
    chain(leaves, 10, 11)
    for number in (1, 2, 3):
        leaves.use(page(number))
    assert [leaves.next() for _ in range(5)] == [page(number) for number in (11, 10, 3, 2, 1)]


def test_what_two_chains_begin_with_goes_after_both() -> None:
    leaves = Leaves()
    chain(leaves, 1, 2)
    leaves.add(page(3), page(1))
    leaves.use(page(2))
    assert [leaves.next() for _ in range(3)] == [page(3), page(2), page(1)]


def test_one_that_was_removed_lets_what_it_continued_go() -> None:
    leaves = Leaves()
    chain(leaves, 1, 2, 3)
    leaves.remove(page(2))
    leaves.remove(page(3))
    leaves.add(page(9), ROOT)
    assert [leaves.next() for _ in range(2)] == [page(1), page(9)]


STEPS = st.lists(st.tuples(st.sampled_from("aurn"), st.integers(0, 12)), max_size=60)


@given(STEPS)
def test_whatever_happens_the_next_is_the_least_recently_used_leaf(steps: list[tuple[str, int]]) -> None:
    leaves, used = Leaves(), dict[int, int]()
    for now, (what, number) in enumerate(steps):
        if what == "a" and number not in used:
            leaves.add(page(number), page(number // 2) if number else ROOT)
            used[number] = now
        elif what == "u" and number in used:
            leaves.use(page(number))
            used[number] = now
        elif what == "r" and number in used:
            leaves.remove(page(number))
            del used[number]
        elif what == "n" and used:
            ends = [each for each in used if not any(other // 2 == each for other in used if other != each)]
            least = min(ends, key=used.__getitem__)
            assert leaves.next() == page(least)
            del used[least]
