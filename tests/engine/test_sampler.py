"""Sampling: the right distribution, the same draw in any batch, and logprobs of what the model said."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.sequence import Sampled, Sampling
from runtime.engine.core import SampleRow
from runtime.engine.sampler import sample, uniform
from runtime.errors import EngineFailed

DRAWS = 2000


def row(position: int = 0, *, seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> SampleRow:
    sampling = Sampling(max_tokens=1, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    return SampleRow(sampling, position)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()[None]


def frequencies(logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    rows = [row(place, temperature=temperature, top_k=top_k, top_p=top_p) for place in range(DRAWS)]
    counts = Counter(sampled.token for sampled in sample(logits.expand(DRAWS, -1), rows))
    return [counts[token] / DRAWS for token in range(logits.shape[-1])]


def assert_distribution(found: list[float], expected: list[float]) -> None:
    for frequency, probability in zip(found, expected, strict=True):
        deviation = math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(frequency - probability) <= 5 * deviation


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    tokens = [sampled.token for sampled in sample(logits, [row(temperature=0.0)] * 3)]
    assert tokens == logits.argmax(-1).tolist()


def test_draws_follow_the_distribution() -> None:
    assert_distribution(frequencies(logits_of(0.5, 0.0, 0.3, 0.15, 0.05)), [0.5, 0.0, 0.3, 0.15, 0.05])


def test_temperature_sharpens_and_flattens() -> None:
    squared = [0.64 / 0.68, 0.04 / 0.68]
    assert_distribution(frequencies(logits_of(0.8, 0.2), temperature=0.5), squared)
    assert_distribution(frequencies(logits_of(0.8, 0.2), temperature=2.0), [2 / 3, 1 / 3])


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert frequencies(logits_of(0.4, 0.6), temperature=1e-300) == [0.0, 1.0]


def test_top_k_keeps_the_most_likely_only() -> None:
    assert_distribution(frequencies(logits_of(0.1, 0.4, 0.3, 0.2), top_k=2), [0.0, 4 / 7, 3 / 7, 0.0])


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert_distribution(frequencies(logits_of(0.6, 0.4), top_k=99), [0.6, 0.4])


def test_among_equals_top_k_keeps_the_lower_tokens() -> None:
    found = frequencies(torch.zeros(1, 100), top_k=3)
    assert_distribution(found, [1 / 3] * 3 + [0.0] * 97)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, [0.0, 1.0, 0.0]), (0.41, [0.0, 4 / 7, 3 / 7]), (0.71, [0.3, 0.4, 0.3])]
)
def test_top_p_keeps_the_fewest_that_hold_it(top_p: float, kept: list[float]) -> None:
    assert_distribution(frequencies(logits_of(0.299, 0.4, 0.301), top_p=top_p), kept)


def test_top_p_counts_within_top_k() -> None:
    """Of 0.4 and 0.3 renormalized, 0.57 holds the first alone; of all three it would take two."""
    assert frequencies(logits_of(0.3, 0.4, 0.3), top_k=2, top_p=0.56) == [0.0, 1.0, 0.0]


def test_a_nucleus_wider_than_the_sorted_head_is_found() -> None:
    logits = torch.zeros(1, 3000)
    logits[0, 2000:] = -1e9
    rows = [row(place, top_p=0.9) for place in range(200)]
    tokens = {sampled.token for sampled in sample(logits.expand(200, -1), rows)}
    assert 1600 < max(tokens) < 1800


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**40), top_k=st.sampled_from([0, 1, 5, 40]))
def test_a_draw_depends_on_nothing_but_its_row(seed: int, position: int, top_k: int) -> None:
    source = torch.Generator().manual_seed(3)
    others = torch.randn(4, 64, generator=source)
    mine = torch.randn(1, 64, generator=source)
    wanted = row(position, seed=seed, top_k=top_k, top_p=0.9)
    alone = sample(mine, [wanted])[0]
    noise = [row(place, seed=9, temperature=place / 2) for place in range(4)]
    for place in range(5):
        batch = torch.cat([others[:place], mine, others[place:]])
        assert sample(batch, [*noise[:place], wanted, *noise[place:]])[place] == alone


def test_seed_and_position_both_change_the_draw() -> None:
    points = {uniform(seed, position) for seed in range(50) for position in range(50)}
    assert len(points) == 2500
    assert all(0 <= point < 1 for point in points)
    assert uniform(2**63 - 1, 0) != uniform(0, 2**63 - 1)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 40), -math.inf)
    logits[0, [7, 21]] = 0.0
    rows = [row(place, top_k=random.Random(place).choice([0, 30])) for place in range(500)]
    assert {sampled.token for sampled in sample(logits.expand(500, -1), rows)} == {7, 21}


def test_logprobs_are_of_the_models_own_distribution() -> None:
    sampling = Sampling(max_tokens=1, temperature=0.3, top_k=1, logprobs=2)
    (sampled,) = sample(logits_of(0.2, 0.7, 0.1), [SampleRow(sampling, 0)])
    assert sampled.token == 1
    assert sampled.logprob == pytest.approx(math.log(0.7), abs=1e-6)
    assert [token for token, _ in sampled.top] == [1, 0]
    assert [logprob for _, logprob in sampled.top] == pytest.approx([math.log(0.7), math.log(0.2)], abs=1e-6)


def test_no_top_logprobs_are_still_a_logprob() -> None:
    (sampled,) = sample(logits_of(0.2, 0.8), [SampleRow(Sampling(max_tokens=1, temperature=0.0, logprobs=0), 0)])
    assert sampled.logprob == pytest.approx(math.log(0.8), abs=1e-6)
    assert sampled.top == ()


def test_logprobs_that_nobody_asked_for_are_not_made() -> None:
    assert sample(logits_of(0.2, 0.8), [row(temperature=0.0)]) == [Sampled(1)]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error_and_not_a_token(poison: float, temperature: float) -> None:
    logits = torch.zeros(2, 8)
    logits[1, 3] = poison
    with pytest.raises(EngineFailed, match="not finite"):
        sample(logits, [row(temperature=temperature)] * 2)


def test_nothing_to_sample_is_nothing() -> None:
    assert sample(torch.empty(0, 8), []) == []
