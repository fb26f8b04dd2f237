"""Breakers open, let one probe through, and close or open for longer; a budget of retries is earned and spent."""

import pytest

from runtime.domain.breaking import BreakerPolicy, Breakers, RetryBudget, RetryPolicy
from runtime.ids import BootId

A, B, C = BootId("a"), BootId("b"), BootId("c")
POLICY = BreakerPolicy(failures=3, open_s=1.0, longest_s=4.0, probe_s=5.0, slow_factor=4.0, slow_s=0.1, samples=4)


@pytest.fixture
def breakers() -> Breakers:
    return Breakers(POLICY)


def fail(breakers: Breakers, boot: BootId, now: float, times: int = POLICY.failures) -> list[bool]:
    return [breakers.failed(boot, now) for _ in range(times)]


def pace(breakers: Breakers, boot: BootId, seconds: float, times: int = POLICY.samples) -> bool:
    return any([breakers.served(boot, seconds, 0.0) for _ in range(times)])


def test_failures_in_a_row_open_it_and_an_output_between_them_does_not(breakers: Breakers) -> None:
    assert fail(breakers, A, 0.0, 2) == [False, False]
    breakers.served(A, None, 0.0)
    assert fail(breakers, A, 0.0) == [False, False, True]
    assert breakers.avoided(0.9) == {A}
    assert breakers.avoided(1.0) == set()


def test_one_probe_is_let_through_and_its_output_closes_it(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    breakers.placed(A, 1.5)
    assert breakers.avoided(1.6) == {A}, "nobody beside the probe"
    breakers.served(A, None, 2.0)
    assert breakers.avoided(2.0) == set()
    assert fail(breakers, A, 2.0, 2) == [False, False], "it has a clean slate"


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_the_longest(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    now = 0.0
    for open_s in (2.0, 4.0, 4.0):
        now = min(at / 2 for at in range(40) if at / 2 > now and not breakers.avoided(at / 2))
        breakers.placed(A, now)
        assert breakers.failed(A, now)
        assert breakers.avoided(now + open_s - 0.1) == {A}
        assert breakers.avoided(now + open_s) == set()


def test_a_probe_that_tells_nothing_is_not_waited_for_for_ever(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    breakers.placed(A, 1.0)
    assert breakers.avoided(5.9) == {A}
    assert breakers.avoided(6.0) == set()


def test_what_still_runs_on_an_open_one_neither_closes_it_nor_lengthens_it(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    breakers.served(A, 0.01, 0.5)
    assert fail(breakers, A, 0.5) == [False, False, False]
    assert breakers.avoided(0.9) == {A}
    assert breakers.avoided(1.0) == set()


def test_a_long_good_time_makes_the_next_opening_short_again(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    breakers.served(A, None, 1.0)
    fail(breakers, A, 1.0 + POLICY.longest_s)
    assert breakers.avoided(2.0 + POLICY.longest_s) == set()


def test_tokens_much_slower_than_the_others_open_it(breakers: Breakers) -> None:
    assert not pace(breakers, B, 0.05)
    assert not pace(breakers, C, 0.06)
    assert not pace(breakers, A, 0.2), "less than the factor times the median"
    assert pace(breakers, A, 2.0)
    assert breakers.avoided(0.5) == {A}
    breakers.served(A, 2.0, 1.0)
    assert not pace(breakers, A, 0.06), "after the probe only what came since counts"


def test_alone_or_fast_enough_nobody_is_slow(breakers: Breakers) -> None:
    assert not pace(breakers, A, 9.0)
    breakers.keep(())
    pace(breakers, B, 0.001)
    assert not pace(breakers, A, 0.09)


def test_a_generation_that_is_gone_is_forgotten(breakers: Breakers) -> None:
    fail(breakers, A, 0.0)
    fail(breakers, B, 0.0)
    breakers.keep((B, C))
    assert breakers.avoided(0.5) == {B}
    assert fail(breakers, A, 0.5, 1) == [False]


def test_retries_are_earned_by_turns_and_by_time_and_kept_up_to_a_bound() -> None:
    budget = RetryBudget(RetryPolicy(per_turn=0.5, per_s=1.0, burst=2.0), 10.0)
    assert [budget.try_take(10.0) for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.try_take(10.0)
    budget.earn()
    assert budget.try_take(10.0)
    assert budget.try_take(11.0)
    assert [budget.try_take(99.0) for _ in range(3)] == [True, True, False]
