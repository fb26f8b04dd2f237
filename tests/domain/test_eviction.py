"""Which cached page is worth least: what it costs to have it again, over how long nobody is likely to want it."""

from itertools import count

from runtime.domain.eviction import EvictionOrder, Rank, recomputing

_NUMBERS = count()


def add(order: EvictionOrder, page: int, since: float, returns_s: float, cost: float = 1.0, **more: bool) -> None:
    rank = Rank.of(returns_s, cost, granted=more.get("granted", False))
    order.add(page, rank, since, next(_NUMBERS))


def emptied(order: EvictionOrder, now: float) -> list[int]:
    return [order.take(now) for _ in range(len(order))]


def test_whoever_is_back_later_loses_his_pages_first() -> None:
    order = EvictionOrder()
    for page, returns_s in enumerate((1.0, 1000.0, 30.0)):
        add(order, page, 0.0, returns_s)
    assert emptied(order, 0.5) == [1, 2, 0]


def test_of_those_who_are_back_at_the_same_time_the_costlier_page_stays() -> None:
    order = EvictionOrder()
    add(order, 0, 0.0, 10.0, recomputing(100_000))
    add(order, 1, 0.0, 10.0, recomputing(0))
    assert emptied(order, 0.0) == [1, 0]


def test_who_is_overdue_is_likely_away_for_as_long_again() -> None:
    # A tool that takes a minute already is no quick one; who was asked a moment ago answers in a minute and a half.
    order = EvictionOrder()
    add(order, 0, 0.0, 1.0)
    add(order, 1, 590.0, 90.0)
    assert emptied(order, 600.0) == [0, 1]
    add(order, 0, 599.0, 1.0)
    add(order, 1, 590.0, 90.0)
    assert emptied(order, 600.0) == [1, 0]


def test_of_equals_the_one_that_was_used_longest_ago_goes_first() -> None:
    order = EvictionOrder()
    for page, since in enumerate((3.0, 1.0, 2.0, 2.0)):
        add(order, page, since, 60.0)
    assert emptied(order, 10.0) == [1, 2, 3, 0]


def test_what_is_granted_goes_last_whatever_it_is_worth() -> None:
    order = EvictionOrder()
    add(order, 0, 0.0, 10_000.0, granted=True)
    add(order, 1, 9.0, 0.1, recomputing(1 << 20))
    assert emptied(order, 10.0) == [1, 0]


def test_a_page_is_where_it_was_put_last_and_taken_once() -> None:
    order = EvictionOrder()
    add(order, 0, 0.0, 1000.0)
    add(order, 1, 0.0, 100.0)
    add(order, 0, 0.0, 1.0)
    order.discard(2)
    assert (len(order), 0 in order, 2 in order) == (2, True, False)
    assert emptied(order, 0.0) == [1, 0]


def test_what_does_not_count_any_more_takes_no_room_for_ever() -> None:
    order = EvictionOrder()
    for _ in range(10_000):
        add(order, 0, 0.0, 60.0)
    assert sum(map(len, order._heaps.values())) < 1000
    assert emptied(order, 0.0) == [0]
