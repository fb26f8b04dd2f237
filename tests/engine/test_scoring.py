"""Log-probabilities of prompts: those of the model, whatever the chunks, the pool, and what the cache holds."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from runtime.domain import batching
from runtime.domain.batching import Limits
from runtime.domain.scoring import MAX_PROMPT_LOGPROBS, PromptScores
from runtime.domain.sequence import MAX_TOP_LOGPROBS, Sequence
from runtime.domain.steps import Admitted, DecodeLocal, Generated, Land, Prefill, Run, Submit
from runtime.engine.core import EngineCore
from runtime.engine.simulated import SimulatedCompute, SimulatedDecoder, continuation, prompt_scores, simulated_spec
from tests.engine import answering
from tests.engine.cores import AWAITING, GREEDY, PAGE, Ran, generate, new_core, prefilled, prompt_of, run, sequence
from tests.scale import scaled

SCORED = replace(GREEDY, prompt_logprobs=2)
# As exact as the tokens of an answer: float32 sums in another order.
TOLERANCE = 1e-4


def scores_of(ran: Ran, name: str) -> PromptScores:
    """They come with the first token and never again."""
    first, *others = ran.generated(name)
    assert first.scores is not None
    assert [event.scores for event in others] == [None] * len(others)
    return first.scores


# Against transformers


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("step_tokens", [1, 7, 64, 512])
def test_they_are_those_of_transformers_for_any_chunk_size(
    kind: str,
    step_tokens: int,
    engine: Callable[..., EngineCore],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    core, top = engine(kind, step_tokens=step_tokens), 5
    prompts = [answering.prompt(size) for size in (1, 2, 70)]
    asked = replace(answering.GREEDY, max_tokens=2, prompt_logprobs=top)
    for prompt in prompts:
        core.apply(Submit(answering.sequence(str(len(prompt)), prompt, asked), DecodeLocal()))
    core.apply(Submit(answering.sequence("plain", answering.prompt(40), answering.GREEDY), DecodeLocal()))
    told = [event for event in answering.run(core) if isinstance(event, Generated) and event.scores is not None]
    assert sorted(event.sequence for event in told) == sorted(str(len(prompt)) for prompt in prompts)
    for event in told:
        prompt = answering.prompt(int(event.sequence))
        with torch.inference_mode():
            logits = reference(kind)(torch.tensor([prompt])).logits[0, :-1]
        agrees(event.scores, torch.log_softmax(logits, dim=-1), torch.tensor(prompt[1:], dtype=torch.int64), top)


def agrees(scores: PromptScores | None, logprobs: torch.Tensor, tokens: torch.Tensor, top: int) -> None:
    assert scores is not None
    mine = logprobs.gather(1, tokens[:, None])
    torch.testing.assert_close(torch.tensor(scores.logprobs), mine[:, 0], atol=TOLERANCE, rtol=0)
    values, _ = logprobs.topk(top)
    shape = (len(tokens), top)
    torch.testing.assert_close(torch.tensor(scores.top_logprobs).view(shape), values, atol=TOLERANCE, rtol=0)
    named = logprobs.gather(1, torch.tensor(scores.top_tokens, dtype=torch.int64).view(shape))
    torch.testing.assert_close(named, values, atol=TOLERANCE, rtol=0)
    least, most = ((logprobs > mine + bound).sum(dim=1) + 1 for bound in (TOLERANCE, -TOLERANCE))
    ranks = torch.tensor(scores.ranks)
    assert bool(((least <= ranks) & (ranks <= most)).all())


# Against the oracle


@pytest.mark.parametrize("step_tokens", [1, 3, 4, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 9, 31])
def test_a_prompt_of_any_length_is_scored_cold_and_warm_and_answered_as_ever(length: int, step_tokens: int) -> None:
    core, prompt = new_core(step_tokens=step_tokens), prompt_of(length)
    for name in ("cold", "warm"):
        ran = generate(core, sequence(name, prompt, SCORED))
        assert scores_of(ran, name) == prompt_scores(prompt, 2)
        assert ran.tokens(name) == continuation(prompt, GREEDY)


def test_what_is_scored_is_computed_here_and_fills_the_cache_for_others() -> None:
    core, prompt = new_core(), prompt_of(17)
    ran = generate(core, sequence("a", prompt, SCORED))
    again = generate(core, sequence("b", prompt, SCORED))
    others = generate(core, sequence("c", prompt))
    admitted = [event for each in (ran, again, others) for event in each.events if isinstance(event, Admitted)]
    assert [event.cached_tokens for event in admitted] == [0, 0, 16]


@settings(max_examples=scaled(40, 400), deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 8), st.integers(0, 3), st.none() | st.integers(0, 3)),
        min_size=1,
        max_size=5,
    ),
    pages=st.integers(8, 20),
    step_tokens=st.integers(1, 9),
)
def test_neither_the_batch_nor_preemptions_change_or_repeat_them(
    shapes: list[tuple[int, int, int, int | None]], pages: int, step_tokens: int
) -> None:
    core = new_core(pages, step_tokens, max_running=4)
    asked = {
        str(place): sequence(
            str(place), prompt_of(length, first), replace(GREEDY, max_tokens=count, prompt_logprobs=top)
        )
        for place, (length, count, first, top) in enumerate(shapes)
    }
    ran = generate(core, *asked.values())
    for name, each in asked.items():
        top = each.sampling.prompt_logprobs
        assert ran.tokens(name) == continuation(each.prompt, each.sampling)
        assert ran.generated(name)[0].scores == (None if top is None else prompt_scores(each.prompt, top))
        assert not any(event.scores for event in ran.generated(name)[1:])


def test_one_that_is_preempted_within_its_prompt_goes_on_scoring_where_it_was() -> None:
    core = new_core(pages=9, step_tokens=4, max_running=2)
    # It needs the whole pool at last, so that the late one's pages are all computed anew.
    first = sequence("first", prompt_of(8), replace(GREEDY, max_tokens=28))
    late = sequence("late", prompt_of(24, 1), replace(SCORED, max_tokens=2))
    ran = generate(core, first, late)
    admitted = [event.sequence for event in ran.events if isinstance(event, Admitted)]
    assert admitted.count(late.id) > 1, "the pool was meant to be too small"
    assert scores_of(ran, "late") == prompt_scores(late.prompt, 2)


def test_no_step_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    core = new_core(step_tokens=64)
    monkeypatch.setattr(batching, "_SCORED_LOGITS", 6 * core.spec.vocab)
    ran = generate(core, sequence("a", prompt_of(20), SCORED), sequence("b", prompt_of(9, 1), SCORED))
    assert max(step.ran_tokens for step in ran.steps) <= 6 + 2
    assert scores_of(ran, "a") == prompt_scores(prompt_of(20), 2)
    assert scores_of(ran, "b") == prompt_scores(prompt_of(9, 1), 2)


def test_frames_that_landed_are_no_reason_to_leave_a_token_unscored() -> None:
    core, prompt = new_core(), prompt_of(18)
    asked = sequence("a", prompt, SCORED)
    core.apply(Submit(asked, AWAITING))
    core.step()
    for frame in prefilled(prompt):
        core.apply(Land(asked.id, frame))
    core.apply(Run(asked.id))
    assert scores_of(run(core), "a") == prompt_scores(prompt, 2)


@pytest.mark.parametrize("cut", range(1, 9))
def test_an_attempt_that_goes_on_owes_none_and_uses_the_cache(cut: int) -> None:
    core, prompt = new_core(), prompt_of(17)
    generate(core, sequence("a", prompt))
    forced = continuation(prompt, GREEDY)[:cut]
    ran = generate(core, sequence("b", prompt, SCORED, forced=forced))
    assert not any(event.scores for event in ran.generated("b"))
    assert ran.steps[0].ran_tokens < len(prompt)
    assert ran.tokens("b") == continuation(prompt, GREEDY)[cut:]


def test_one_that_prefills_for_others_scores_nothing() -> None:
    core, prompt = new_core(), prompt_of(9)
    core.apply(Submit(sequence("p", prompt, SCORED), Prefill(8, 0)))
    assert [len(frame.payload) for frame in run(core).frames()] == [8 * PAGE] * 2


# Refusals


def refused(core: EngineCore, asked: Sequence) -> tuple[str, str | None, str]:
    error = generate(core, asked).error()
    return error.status.code, error.field, error.message


def test_more_than_a_message_holds_is_refused_with_the_arithmetic() -> None:
    most = replace(GREEDY, prompt_logprobs=MAX_TOP_LOGPROBS)
    fits = MAX_PROMPT_LOGPROBS // (1 + MAX_TOP_LOGPROBS)
    core = new_core(pages=2000, max_tokens=8000)
    code, field, message = refused(core, sequence("a", prompt_of(fits + 1), most))
    assert (code, field) == ("invalid", "prompt_logprobs")
    assert f"the prompt has {fits + 1} tokens" in message
    assert f"at most {MAX_PROMPT_LOGPROBS}" in message
    most.check_prompt(fits)


def test_an_engine_without_the_logits_says_so() -> None:
    limits = Limits(8, 4)
    spec = simulated_spec("s", PAGE, 99)
    compute = SimulatedCompute(8, PAGE)
    core = EngineCore(spec, 8, limits, compute, frozenset(), SimulatedDecoder, scores=False)
    assert refused(core, sequence("a", prompt_of(3), SCORED))[:2] == ("unsupported", "prompt_logprobs")
    assert generate(core, sequence("b", prompt_of(3), SCORED, forced=continuation(prompt_of(3), GREEDY)[:1])).tokens(
        "b"
    )
