"""How much prefill goes beside decoding: all that is left without a bound, what fits in time with one."""

import pytest

from runtime.domain.budget import StepBudget

STEP, LEAST = 512, 32


def learnt(itl_s: float | None, decode_s: float, token_s: float) -> StepBudget:
    """A budget on an engine of such speed."""
    budget = StepBudget(STEP, itl_s, LEAST)
    for _ in range(50):
        budget.took(0, 4, decode_s)
        budget.took(100, 4, decode_s + 100 * token_s)
    return budget


def test_without_a_bound_prefill_gets_all_that_decoding_leaves() -> None:
    budget = learnt(None, 0.05, 0.01)
    assert budget.prefill_tokens(0) == STEP
    assert budget.prefill_tokens(12) == STEP - 12
    assert budget.prefill_tokens(STEP + 5) == 0


def test_with_a_bound_the_step_ends_in_time() -> None:
    budget = learnt(0.2, decode_s=0.12, token_s=0.001)
    assert budget.prefill_tokens(4) == pytest.approx(80, abs=1)
    assert budget.prefill_tokens(0) == STEP


def test_a_step_with_prefill_takes_less_than_two_without() -> None:
    assert learnt(10.0, decode_s=0.05, token_s=0.001).prefill_tokens(4) == pytest.approx(40, abs=1)


def test_a_fast_engine_is_not_held_back() -> None:
    assert learnt(0.2, decode_s=0.005, token_s=0.000005).prefill_tokens(4) == STEP - 4


def test_an_engine_that_takes_no_time_is_not_held_back() -> None:
    assert learnt(0.2, decode_s=0.0, token_s=0.0).prefill_tokens(4) == STEP - 4


def test_prefill_goes_on_even_where_decoding_alone_is_late() -> None:
    assert learnt(0.2, decode_s=0.5, token_s=0.001).prefill_tokens(4) == LEAST


def test_an_engine_that_was_never_seen_is_taken_for_slow() -> None:
    assert LEAST <= StepBudget(STEP, 0.2, LEAST).prefill_tokens(1) < STEP // 4
    assert StepBudget(8, 0.2, LEAST).prefill_tokens(1) == 7
    never_alone = StepBudget(STEP, 0.2, LEAST)
    never_alone.took(100, 4, 0.1)
    assert never_alone.prefill_tokens(4) < STEP // 4


def test_what_decoding_took_is_not_blamed_on_prefill() -> None:
    alone, beside = StepBudget(STEP, 0.2, LEAST), StepBudget(STEP, 0.2, LEAST)
    for budget in (alone, beside):
        budget.took(0, 8, 0.1)
    alone.took(100, 0, 0.1)
    beside.took(100, 8, 0.2)
    assert alone.prefill_tokens(8) == beside.prefill_tokens(8) == 80
