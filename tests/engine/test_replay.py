"""An answer that is cut at any token and replayed on another engine goes on as it would have: for every option.

This is what a failover does: the tokens that were given out are forced, and nothing else of the first engine is left.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.domain.batching import Limits
from runtime.domain.sampling import Penalties
from runtime.domain.sequence import FinishReason, Sampling, Sequence
from runtime.domain.steps import DecodeLocal, Generated, StepEvent, Submit
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native
from runtime.ids import SequenceId
from runtime.model.synthetic import TINY
from tests.engine.test_grammar import CHOICE, JSON, REGEX, SUM

PROMPT = tuple(random.Random(5).randrange(8, 40) for _ in range(40))
BASE = Sampling(max_tokens=24, temperature=0.9, seed=7)
# The biases gather the answer on few tokens, so that bans and penalties meet what they act on.
FEW = tuple((token, 12.0) for token in range(20, 28))
OPTIONS = {
    "greedy": replace(BASE, temperature=0.0),
    "min_p": replace(BASE, min_p=0.2),
    "typical_p": replace(BASE, typical_p=0.5),
    "top_k and top_p": replace(BASE, top_k=30, top_p=0.8),
    "logprobs": replace(BASE, logprobs=3),
    "prompt_logprobs": replace(BASE, prompt_logprobs=3),
    "logit_bias": replace(BASE, logit_bias=FEW),
    "repetition_penalty": replace(BASE, logit_bias=FEW, penalties=Penalties(repetition=1.8)),
    "presence_penalty": replace(BASE, logit_bias=FEW, penalties=Penalties(presence=1.5)),
    "frequency_penalty": replace(BASE, logit_bias=FEW, penalties=Penalties(frequency=1.5)),
    "negative penalties": replace(BASE, penalties=Penalties(repetition=0.7, presence=-2, frequency=-1)),
    "min_tokens": replace(BASE, min_tokens=20, logit_bias=((1, 100.0),)),
    "banned_tokens": replace(
        BASE, logit_bias=FEW, banned_tokens=((20,), (21, 22), *((23, token, 24) for token in range(20, 28)))
    ),
    "stop": replace(BASE, stop=("e", "t"), min_tokens=3),
    "json_schema": replace(BASE, max_tokens=80, grammar=JSON),
    "regex": replace(BASE, grammar=REGEX),
    "choice": replace(BASE, grammar=CHOICE),
    "lark": replace(BASE, max_tokens=40, grammar=SUM, penalties=Penalties(presence=1.0)),
    "greedy penalties": replace(BASE, temperature=0.0, penalties=Penalties(1.3, 0.4, 0.4), ignore_eos=True),
}


@pytest.fixture(scope="module")
def build(checkpoint: Callable[[str], Path]) -> Callable[[], EngineCore]:
    def new() -> EngineCore:
        settings = NativeSettings("tiny", checkpoint("llama"), "float32", page_tokens=32, threads=1)
        return build_native(settings, Limits(96, max_running=32), lambda _: 100)

    return new


def answers(core: EngineCore, *asked: Sequence) -> list[list[Generated]]:
    """What each of them is given, together in one batch."""
    for each in asked:
        core.apply(Submit(each, DecodeLocal()))
    events: list[StepEvent] = []
    while core.busy:
        events += core.step().events
    core.check()
    return [[event for event in events if isinstance(event, Generated) and event.sequence == each.id] for each in asked]


def asking(name: str, sampling: Sampling, forced: tuple[int, ...] = ()) -> Sequence:
    return Sequence(SequenceId(name), PROMPT, sampling, bytes(16), forced)


def tokens_of(given: list[Generated]) -> tuple[int, ...]:
    return tuple(sampled.token for event in given for sampled in event.tokens)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_answer_cut_at_any_token_goes_on_as_it_would_have(option: str, build: Callable[[], EngineCore]) -> None:
    sampling = OPTIONS[option]
    (whole,) = answers(build(), asking("whole", sampling))
    tokens = tokens_of(whole)
    assert whole[-1].finish is not None
    cuts = range(1, len(tokens))
    again = answers(build(), *(asking(str(cut), sampling, tokens[:cut]) for cut in cuts))
    for cut, given in zip(cuts, again, strict=True):
        assert tokens_of(given) == tokens[cut:]
        assert [event.text for event in given] == [event.text for event in whole[cut:]]
        assert given[-1].finish is whole[-1].finish
        assert not any(event.scores for event in given), "the first attempt told it"


@pytest.mark.parametrize("option", OPTIONS.keys() - {"greedy", "logprobs", "prompt_logprobs"})
def test_every_option_changes_the_answer(option: str, build: Callable[[], EngineCore]) -> None:
    """Or its replay would prove nothing."""
    sampling = OPTIONS[option]
    plain = replace(BASE, temperature=sampling.temperature, ignore_eos=sampling.ignore_eos)
    if sampling.penalties != BASE.penalties or sampling.banned_tokens:
        plain = replace(plain, logit_bias=sampling.logit_bias)
    with_option, without = answers(build(), asking("with", sampling), asking("without", plain))
    assert tokens_of(with_option) != tokens_of(without)


def test_a_batch_of_all_options_gives_each_what_it_gets_alone(build: Callable[[], EngineCore]) -> None:
    together = answers(build(), *(asking(option, sampling) for option, sampling in OPTIONS.items()))
    for (option, sampling), given in zip(OPTIONS.items(), together, strict=True):
        (alone,) = answers(build(), asking(option, sampling))
        assert tokens_of(given) == tokens_of(alone), option


def test_the_eos_waits_for_min_tokens(build: Callable[[], EngineCore]) -> None:
    """The bias makes the end-of-turn token certain wherever it is allowed."""
    (given,) = answers(build(), asking("a", OPTIONS["min_tokens"]))
    assert len(tokens_of(given)) == OPTIONS["min_tokens"].min_tokens + 1
    assert given[-1].finish is FinishReason.STOP


def test_banned_sequences_do_not_occur(build: Callable[[], EngineCore]) -> None:
    banned = OPTIONS["banned_tokens"].banned_tokens
    assert TINY.vocab > max(map(max, banned))
    (given,) = answers(build(), asking("a", OPTIONS["banned_tokens"]))
    tokens = tokens_of(given)
    assert len(set(tokens)) > 2
    for each in banned:
        assert not any(tokens[place : place + len(each)] == each for place in range(len(tokens)))
