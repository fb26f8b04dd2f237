"""Bias, penalties and bans change logits as documented, each row by itself, and never the row that asks for none."""

import math
from collections.abc import Sequence

import pytest
import torch

from runtime.domain.sampling import Penalties
from runtime.domain.sequence import Sampling
from runtime.engine.core import SampleRow
from runtime.engine.history import History
from runtime.engine.processors import bend
from runtime.engine.sampler import sample
from tests.engine.test_sampler import assert_distribution, logits_of

VOCAB = 8
EOS = frozenset({7})


def row(sampling: Sampling, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> SampleRow:
    history = History(sampling, prompt, EOS)
    for token in output:
        history.push(token)
    return SampleRow(sampling, len(prompt) + len(output), history)


def bent(logits: torch.Tensor, *rows: SampleRow) -> torch.Tensor:
    found = bend(logits, rows)
    assert found is not None
    return found.logits


def drawn(logits: torch.Tensor, sampling: Sampling, draws: int = 2000) -> list[float]:
    rows = [SampleRow(sampling, place) for place in range(draws)]
    tokens = [sampled.token for sampled in sample(logits.expand(draws, -1), rows)]
    return [tokens.count(token) / draws for token in range(logits.shape[-1])]


def test_penalties_act_as_documented() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0, 0.0, 0.0, 0.0]])
    asked = row(Sampling(9, penalties=Penalties(2.0, 0.5, 0.25)), prompt=(0, 1), output=(2, 2, 3))
    expected = [1.0, -4.0, 1.0 - 0.5 - 0.5, -4.0 - 0.25 - 0.5, 1.0, 0.0, 0.0, 0.0]
    assert bent(logits, asked)[0].tolist() == expected


def test_a_prompt_counts_for_repetition_only() -> None:
    logits = torch.ones(1, VOCAB)
    assert bent(logits, row(Sampling(9, penalties=Penalties(presence=1, frequency=1)), prompt=(0, 1))).equal(logits)


def test_bias_comes_before_penalties() -> None:
    asked = Sampling(9, penalties=Penalties(repetition=2.0), logit_bias=((0, 3.0), (5, -100.0)))
    found = bent(torch.ones(1, VOCAB), row(asked, output=(0,)))[0].tolist()
    assert found == [2.0, 1.0, 1.0, 1.0, 1.0, -99.0, 1.0, 1.0]


def test_bans_hold_whatever_the_bias() -> None:
    asked = Sampling(9, banned_tokens=((0,), (1, 2)), logit_bias=((0, 100.0), (2, 100.0)), min_tokens=9)
    found = bent(torch.zeros(1, VOCAB), row(asked, output=(1,)))[0]
    assert found.isneginf().nonzero()[:, 0].tolist() == [0, 2, 7]


def test_bans_that_leave_nothing_are_void_for_that_row_alone() -> None:
    logits = torch.full((2, VOCAB), -math.inf)
    logits[:, 7] = 1.0
    logits[1, 3] = 0.5
    asked = Sampling(9, temperature=0.0, min_tokens=9)
    assert [sampled.token for sampled in sample(logits, [row(asked)] * 2)] == [7, 3]


def test_a_row_is_bent_by_its_own_options_only_and_the_logits_stay() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    options = [
        Sampling(9, penalties=Penalties(1.7, 0.1, 0.3)),
        Sampling(9, logit_bias=((1, 2.5), (3, -1.0))),
        Sampling(9, penalties=Penalties(presence=-1.0), banned_tokens=((2,),)),
        Sampling(9, min_tokens=4),
    ]
    rows = [row(each, (1, 2, 3), (4, 4, place)) for place, each in enumerate(options)]
    plain = SampleRow(Sampling(9), 6)
    together = bend(logits, [plain, *rows, plain])
    assert together is not None
    assert set(together.places) == {1, 2, 3, 4}
    for place, each in enumerate(rows, 1):
        assert together.logits[together.places[place]].equal(bent(logits[[place]], each)[0])
    assert logits.equal(before)
    assert bend(logits[:2], [plain, plain]) is None


def test_logprobs_stay_those_of_the_model() -> None:
    asked = row(Sampling(9, temperature=0.0, logit_bias=((0, 50.0),), logprobs=1))
    (sampled,) = sample(logits_of(0.2, 0.8), [asked])
    assert sampled.token == 0
    assert sampled.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert sampled.top[0][0] == 1


def test_min_p_keeps_what_is_near_the_most_likely() -> None:
    logits = logits_of(0.5, 0.26, 0.14, 0.1)
    assert_distribution(drawn(logits, Sampling(9, min_p=0.5)), [0.5 / 0.76, 0.26 / 0.76, 0.0, 0.0])
    assert drawn(logits, Sampling(9, min_p=1.0), 50) == [1.0, 0.0, 0.0, 0.0]


def test_min_p_is_held_against_the_tempered_distribution() -> None:
    """At temperature 0.5 the ratio 0.26 / 0.5 becomes its square."""
    assert drawn(logits_of(0.5, 0.26, 0.24), Sampling(9, min_p=0.5, temperature=0.5), 50) == [1.0, 0.0, 0.0]


def test_top_p_counts_what_min_p_left() -> None:
    """Of 0.5 and 0.26 renormalized, 0.65 holds the first alone; of all four it would take two."""
    sampling = Sampling(9, min_p=0.5, top_p=0.65)
    assert drawn(logits_of(0.5, 0.26, 0.14, 0.1), sampling, 50) == [1.0, 0.0, 0.0, 0.0]


def test_typical_sampling_prefers_what_is_as_surprising_as_expected() -> None:
    """The entropy is 1.19; surprises are 0.69, 1.39, 1.90, 2.30: the second is the nearest, then the first."""
    logits = logits_of(0.5, 0.25, 0.15, 0.1)
    assert drawn(logits, Sampling(9, typical_p=0.2), 50) == [0.0, 1.0, 0.0, 0.0]
    assert_distribution(drawn(logits, Sampling(9, typical_p=0.5)), [2 / 3, 1 / 3, 0.0, 0.0])


def test_typical_sampling_looks_beyond_the_sorted_head() -> None:
    """Equals are taken in the order of their tokens, until they hold enough."""
    logits = torch.zeros(1, 3000)
    logits[0, 2000:] = -1e9
    sampling = Sampling(9, typical_p=0.9)
    tokens = {
        sampled.token for sampled in sample(logits.expand(200, -1), [SampleRow(sampling, at) for at in range(200)])
    }
    assert 1600 < max(tokens) < 1800


def test_typical_sampling_sees_what_the_others_left() -> None:
    logits = torch.cat([logits_of(0.5, 0.25, 0.15, 0.1), torch.full((1, 3), -math.inf)], dim=1)
    found = drawn(logits, Sampling(9, typical_p=0.5, top_k=2))
    assert found == [1.0, *[0.0] * 6]
