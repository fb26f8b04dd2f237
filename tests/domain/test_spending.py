"""What a turn may hold of its session's budget: never more than is left, and what a refusal says."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.spending import (
    MAX_LIMIT,
    NOTHING,
    SLICE_MS,
    SLICE_TOKENS,
    Account,
    Amounts,
    Limits,
    Measure,
    Meter,
    Purse,
    first_slice,
)
from runtime.errors import BudgetSpent, InvalidArgument, ResourceExhausted

COUNT = st.integers(0, 2000)
AMOUNTS = st.builds(Amounts, *[COUNT] * 6)
LIMITS = st.builds(Limits, *[st.none() | COUNT] * 6)


@given(LIMITS, AMOUNTS, st.lists(AMOUNTS, min_size=1, max_size=8))
def test_what_is_granted_never_exceeds_the_limits_together(limits: Limits, used: Amounts, wants: list[Amounts]) -> None:
    """Invariant 12, whatever was spent before the limits were set."""
    account = Account(limits, used)
    for want in wants:
        granted = account.granted(NOTHING, want)
        account = replace(account, held=account.held + granted)
        assert all(got <= wanted for got, wanted in zip(astuple(granted), astuple(want), strict=True))
    for limit, spent, held in zip(astuple(limits), astuple(used), astuple(account.held), strict=True):
        assert limit is None or held <= max(limit - spent, 0)


@given(LIMITS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_what_is_held_is_never_taken_back_and_asking_again_gives_it_once(
    limits: Limits, used: Amounts, has: Amounts, want: Amounts
) -> None:
    account = Account(limits, used, has)
    once = account.granted(has, want)
    assert all(got >= before for got, before in zip(astuple(once), astuple(has), strict=True))
    assert replace(account, held=once).granted(once, want) == once


@pytest.mark.parametrize("measure", Measure)
def test_a_turn_that_has_nothing_left_is_refused_by_the_limit(measure: Measure) -> None:
    want = first_slice(100, 50, 10)
    spent = Account(Limits(**{measure: 5}), Amounts(**{measure: 5}))
    refusal = spent.refusal(want)
    assert isinstance(refusal, BudgetSpent)
    assert refusal.field == f"limits.{measure}"
    assert f"5 of 5 {measure}" in refusal.message
    for_a_while = replace(spent, limits=Limits(**{measure: 1000}), used=NOTHING, held=Amounts(**{measure: 1000}))
    refusal = for_a_while.refusal(want)
    assert isinstance(refusal, ResourceExhausted)
    assert (refusal.field, refusal.retry_after_ms) == (f"limits.{measure}", 1000)
    assert replace(for_a_while, held=NOTHING).refusal(want) is None


@pytest.mark.parametrize("measure", [Measure.PROMPT, Measure.CACHED])
def test_a_prompt_that_may_cost_more_than_is_left_is_refused(measure: Measure) -> None:
    refusal = Account(Limits(**{measure: 99})).refusal(first_slice(100, 50, 10))
    assert isinstance(refusal, BudgetSpent)
    assert "this turn may take 100" in refusal.message
    assert Account(Limits(**{measure: 100})).refusal(first_slice(100, 50, 10)) is None


def test_a_slice_is_asked_for_before_it_is_needed_and_not_again_and_again_where_none_is_left() -> None:
    purse = Purse(first_slice(10, 1000, 0), 10, 1000, 0)
    assert purse.held.completion_tokens == SLICE_TOKENS
    assert not purse.low(SLICE_TOKENS // 2)
    assert purse.low(SLICE_TOKENS)
    want = purse.want(SLICE_TOKENS, NOTHING)
    assert want.completion_tokens == 2 * SLICE_TOKENS
    purse.take(replace(want, completion_tokens=SLICE_TOKENS))
    assert not purse.low(SLICE_TOKENS)
    assert not purse.fits(SLICE_TOKENS + 1)
    short = Purse(first_slice(10, 20, 0), 10, 20, 0)
    assert not short.low(20), "it needs no more than it holds"


def test_time_and_kv_last_as_long_as_what_is_held_of_them() -> None:
    """A turn of 100 tokens of 10 bytes each takes 1,000 byte-seconds a second."""
    wall = Purse(Amounts(wall_ms=5000, kv_byte_seconds=10_000), 90, 50, 10)
    assert wall.left_ms(10, NOTHING) == 5000
    kv = Purse(Amounts(wall_ms=5000, kv_byte_seconds=3000), 90, 50, 10)
    assert kv.left_ms(10, NOTHING) == 3000
    later = Amounts(wall_ms=3000, kv_byte_seconds=3000)
    assert kv.left_ms(10, later) == 0
    assert kv.out_of(later) is Measure.KV
    assert wall.out_of(Amounts(wall_ms=5000)) is Measure.WALL
    wanted = kv.want(10, later)
    assert (wanted.wall_ms, wanted.kv_byte_seconds) == (3000 + SLICE_MS, 3000 + 10 * (90 + 50) * SLICE_MS // 1000)


def test_more_time_is_asked_for_in_time_and_at_the_end_only_once() -> None:
    purse = Purse(Amounts(wall_ms=1000), 1, 1, 0)
    assert purse.ask_in_ms(0, NOTHING) == 500
    assert purse.ask_in_ms(0, Amounts(wall_ms=900)) == 100
    assert purse.ask_in_ms(0, Amounts(wall_ms=2000)) == 1


def test_a_meter_counts_what_was_held_for_as_long_as_it_was() -> None:
    meter = Meter(10, Amounts(wall_ms=7, kv_byte_seconds=5), 100.0)
    assert meter.read(102.0, 50) == Amounts(wall_ms=2007, kv_byte_seconds=5 + 1000)
    assert meter.read(103.0, 100) == Amounts(wall_ms=3007, kv_byte_seconds=5 + 2000)


def test_a_limit_that_no_store_can_hold_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidArgument) as refused:
        Limits(wall_ms=MAX_LIMIT + 1).validate()
    assert refused.value.field == "limits.wall_ms"
