"""Engines over the stand-in answer token by token as dense attention does, alone and as the prefill of others."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.domain.batching import Limits
from runtime.domain.grammar import one_of
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import (
    DecodeAwaiting,
    DecodeLocal,
    Exported,
    Frame,
    Generated,
    Land,
    Prefill,
    Reserved,
    Run,
    SequenceFailed,
    StepEvent,
    Submit,
)
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeCompute, NativeSettings, build_native
from runtime.engine.neuron.buckets import Bucket
from runtime.engine.neuron.build import NeuronSettings, build_neuron
from runtime.engine.neuron.runner import Warmed
from runtime.engine.neuron.stand_in import StandIn
from runtime.engine.simulated import SimulatedDecoder
from runtime.errors import ContextExceeded
from runtime.ids import SequenceId
from tests.engine.generating import generated
from tests.engine.neuron.conftest import BUCKETS, PAGE, PAGES, OnStandIn
from tests.engine.neuron.test_runner import prompt

KINDS = ("llama", "qwen3")
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
SALT = bytes(16)


@pytest.fixture
def cpu(checkpoint: Callable[[str], Path]) -> Callable[[str], EngineCore]:
    def build(kind: str) -> EngineCore:
        settings = NativeSettings("tiny", checkpoint(kind), "float32", page_tokens=PAGE, threads=1)
        return build_native(settings, Limits(step_tokens=48, max_running=8), lambda _: 64)

    return build


@pytest.fixture
def neuron(stand_in: Callable[[str], OnStandIn]) -> Callable[[str], EngineCore]:
    """A new engine over the warmed runner, whose pages still hold what was there before."""

    def build(kind: str, pages: int = PAGES) -> EngineCore:
        warmed = stand_in(kind)
        limits, compute = Limits(step_tokens=48, max_running=8), NativeCompute(warmed.runner)
        return EngineCore(warmed.spec, pages, limits, compute, frozenset(), _Wordless)

    return build


class _Wordless(SimulatedDecoder):
    def push(self, token: int) -> str:
        return ""


def run(core: EngineCore) -> list[StepEvent]:
    events: list[StepEvent] = []
    while core.busy:
        events += core.step().events
    core.check()
    return events


def sequence(name: str, tokens: tuple[int, ...]) -> Sequence:
    return Sequence(SequenceId(name), tokens, GREEDY, SALT)


def tokens_of(events: Iterable[StepEvent], name: str) -> list[int]:
    return [
        sampled.token
        for event in events
        if isinstance(event, Generated) and event.sequence == name
        for sampled in event.tokens
    ]


def exported(core: EngineCore, asked: Sequence, upto: int, first_page: int = 0) -> list[Frame]:
    core.apply(Submit(asked, Prefill(upto, first_page)))
    return [event.frame for event in run(core) if isinstance(event, Exported)]


def split(prefill: EngineCore, decode: EngineCore, asked: Sequence) -> list[int]:
    """Prefill in one engine, move the frames, decode in the other."""
    decode.apply(Submit(asked, DecodeAwaiting()))
    (reserved,) = (event for event in decode.step().events if isinstance(event, Reserved))
    for frame in exported(prefill, asked, len(asked.prompt) - 1, reserved.local_tokens // PAGE):
        decode.apply(Land(asked.id, frame))
    decode.apply(Run(asked.id))
    return tokens_of(run(decode), asked.id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 8, 9, 60, 130])
def test_the_cpu_decodes_token_exact_what_the_device_prefilled(
    kind: str,
    size: int,
    neuron: Callable[[str], EngineCore],
    cpu: Callable[[str], EngineCore],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    asked = sequence("a", prompt(size, size))
    assert split(neuron(kind), cpu(kind), asked) == generated(reference(kind), list(asked.prompt), GREEDY.max_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_exported_pages_are_those_of_the_cpu(
    kind: str, neuron: Callable[[str], EngineCore], cpu: Callable[[str], EngineCore]
) -> None:
    asked = sequence("a", prompt(75))
    mine, theirs = exported(neuron(kind), asked, 74), exported(cpu(kind), asked, 74)
    assert [(frame.page, frame.index, frame.valid_tokens) for frame in mine] == [
        (frame.page, frame.index, frame.valid_tokens) for frame in theirs
    ]
    for one, other in zip(mine, theirs, strict=True):
        first, second = (torch.frombuffer(bytearray(frame.payload), dtype=torch.float32) for frame in (one, other))
        # They add in another order, in float32.
        torch.testing.assert_close(first, second, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_through_the_buckets_is_token_exact_alone_and_together(
    kind: str, neuron: Callable[[str], EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    prompts = {str(size): prompt(size, size) for size in (1, 16, 33, 70)}
    expected = {name: generated(reference(kind), list(tokens), GREEDY.max_tokens) for name, tokens in prompts.items()}
    core = neuron(kind)
    for name, tokens in prompts.items():
        core.apply(Submit(sequence(f"alone {name}", tokens), DecodeLocal()))
        assert tokens_of(run(core), f"alone {name}") == expected[name]
    core = neuron(kind)
    for name, tokens in prompts.items():
        core.apply(Submit(sequence(name, tokens), DecodeLocal()))
    events = run(core)
    assert {name: tokens_of(events, name) for name in prompts} == expected


def test_preempted_sequences_go_on_where_they_were(
    neuron: Callable[..., EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    core = neuron("llama", pages=16)
    prompts = {str(size): prompt(size, size) for size in (50, 51, 52)}
    for name, tokens in prompts.items():
        core.apply(Submit(sequence(name, tokens), DecodeLocal()))
    events = run(core)
    for name, tokens in prompts.items():
        assert tokens_of(events, name) == generated(reference("llama"), list(tokens), GREEDY.max_tokens)


def test_pages_of_the_history_enter_the_device_and_are_not_computed_again(
    neuron: Callable[[str], EngineCore],
    cpu: Callable[[str], EngineCore],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    """The CPU prefills, the device decodes; then the next turn's prefill on the device starts from those pages."""
    asked, device = sequence("a", prompt(100)), neuron("llama")
    assert split(cpu("llama"), device, asked) == generated(reference("llama"), list(asked.prompt), GREEDY.max_tokens)
    again = sequence("b", (*asked.prompt, *prompt(20, 9)))
    assert device.match(()) == 0
    answer = split(device, cpu("llama"), again)
    assert answer == generated(reference("llama"), list(again.prompt), GREEDY.max_tokens)


@pytest.fixture(scope="module")
def built(checkpoint: Callable[[str], Path]) -> tuple[EngineCore, StandIn, list[Warmed]]:
    device, heard = StandIn(), list[Warmed]()
    native = NativeSettings("tiny", checkpoint("llama"), "bfloat16", page_tokens=PAGE, threads=1)
    settings = NeuronSettings((Bucket(16, 6),), device, heard.append)
    return build_neuron(native, settings, Limits(48, 8), lambda _: 40, 1 << 30), device, heard


def test_an_engine_is_built_with_all_its_buckets_warm(built: tuple[EngineCore, StandIn, list[Warmed]]) -> None:
    core, device, heard = built
    assert len(heard) == len(device.graphs) == 1
    core.apply(Submit(replace(sequence("a", prompt(40)), sampling=replace(GREEDY, max_tokens=5)), DecodeLocal()))
    assert len(tokens_of(run(core), "a")) == 5
    assert len(device.graphs) == 1


def test_what_a_device_runs_keeps_to_a_grammar(built: tuple[EngineCore, StandIn, list[Warmed]]) -> None:
    asked = replace(sequence("chosen", prompt(9)), sampling=Sampling(16, grammar=one_of(["yes", "no"])))
    built[0].apply(Submit(asked, DecodeLocal()))
    assert "".join(event.text for event in run(built[0]) if isinstance(event, Generated)) in ("yes", "no")


def test_a_context_is_no_longer_than_the_buckets_hold(built: tuple[EngineCore, StandIn, list[Warmed]]) -> None:
    core, _, _ = built
    assert core.spec.max_tokens == 6 * PAGE
    core.apply(Submit(sequence("long", prompt(60)), DecodeLocal()))
    (failed,) = run(core)
    assert isinstance(failed, SequenceFailed)
    assert isinstance(failed.error, ContextExceeded)


def test_the_buckets_of_these_tests_hold_what_they_ask() -> None:
    assert max(bucket.past_pages for bucket in BUCKETS) * PAGE >= 130 + GREEDY.max_tokens
