"""Pages that leave an engine layer by layer, while their last tokens are computed."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.steps import Exported, Frame, Land, Prefill, Prefilled, Run, StepOutput, Submit
from runtime.engine.core import EngineCore
from runtime.engine.simulated import (
    SimulatedCompute,
    SimulatedDecoder,
    SimulatedEngine,
    StepProfile,
    continuation,
    simulated_spec,
)
from runtime.engine.simulated_kv import KvShape
from runtime.ids import SequenceId
from runtime.kv.parts import Joined
from tests.engine import answering
from tests.engine.cores import AWAITING, GREEDY, PAGE, prompt_of, run, sequence
from tests.roles.virtual import in_virtual_time

SHAPE = KvShape(layers=6, kv_heads=2, head_dim=4, dtype="bfloat16")
SPEC = simulated_spec("wide", PAGE, 200, SHAPE)
CUTS = tuple(group.layers[-1] + 1 for group in SPEC.cut(3).page_groups)
PROMPT = prompt_of(24)
P = SequenceId("p")


def wide_core() -> EngineCore:
    compute = SimulatedCompute(64, PAGE, SHAPE)
    return EngineCore(SPEC, 64, Limits(8, 4), compute, frozenset(), SimulatedDecoder, layerwise=compute)


class Early(list[StepOutput]):
    """All that comes before its step is over."""

    def __call__(self, output: StepOutput) -> bool:
        self.append(output)
        return True


def joined(frames: Iterable[Frame], groups: int = 3) -> list[Frame]:
    joining = Joined(SPEC.cut(groups), 16)
    whole = [page for frame in frames if (page := joining.add(frame)) is not None]
    assert len(joining) == 0, "no part is missing"
    return whole


def exported(outputs: Iterable[StepOutput]) -> list[Frame]:
    return [event.frame for output in outputs for event in output.events if isinstance(event, Exported)]


def test_parts_come_before_the_step_is_over_group_by_group_and_make_the_same_pages() -> None:
    core, early = wide_core(), Early()
    core.take_early = early
    core.apply(Submit(sequence("p", PROMPT), Prefill(22, 1, CUTS)))
    steps = run(core).steps
    assert exported(steps) == []
    assert [output.step for output in early] == [1] * 3 + [2] * 3 + [3] * 3
    first, second, third = ([frame.part for frame in exported([output])] for output in early[:3])
    assert [{part.group for part in parts if part} for parts in (first, second, third)] == [{0}, {1}, {2}]
    assert [event for output in steps for event in output.events if isinstance(event, Prefilled)] == [Prefilled(P, 0)]
    whole = wide_core()
    whole.apply(Submit(sequence("p", PROMPT), Prefill(22, 1)))
    assert joined(exported(early)) == run(whole).frames()


def test_what_is_not_taken_early_comes_with_the_step() -> None:
    core, taken = wide_core(), Early()

    def take(output: StepOutput) -> bool:
        if output.step != 2 or len(output.events) > 4:
            taken.append(output)
            return True
        return False

    core.take_early = take
    core.apply(Submit(sequence("p", PROMPT), Prefill(22, 0, CUTS)))
    steps = run(core).steps
    frames = exported(taken) + exported(steps)
    assert exported(steps) or any(len(output.events) > 4 for output in taken)
    assert len(frames) == 6 * 3, "each once"
    assert [page.index for page in joined(frames)] == list(range(6))


class Silent(SimulatedCompute):
    """Tells of its first layers only, as a model does whose last layers share the KV of others."""

    def listen(self, written: Callable[[int], None]) -> None:
        super().listen(lambda layer: written(layer) if layer < 3 else None)


def test_layers_of_which_nothing_was_told_come_with_the_step() -> None:
    compute, early = Silent(64, PAGE, SHAPE), Early()
    core = EngineCore(SPEC, 64, Limits(8, 4), compute, frozenset(), SimulatedDecoder, layerwise=compute)
    core.take_early = early
    core.apply(Submit(sequence("p", PROMPT), Prefill(22, 0, CUTS)))
    steps = run(core).steps
    assert {frame.part.group for frame in exported(early) if frame.part} == {0}
    assert {frame.part.group for frame in exported(steps) if frame.part} == {1, 2}
    assert len(joined(exported(early) + exported(steps))) == 6


def test_pages_out_of_the_cache_go_with_those_that_are_computed() -> None:
    core, early = wide_core(), Early()
    core.apply(Submit(sequence("before", PROMPT[:13]), Prefill(12, 0)))
    run(core)
    core.take_early = early
    core.apply(Submit(sequence("p", PROMPT), Prefill(22, 0, CUTS)))
    steps = run(core).steps
    assert [page.index for page in joined(exported(early) + exported(steps))] == list(range(6))
    core.apply(Submit(sequence("q", PROMPT), Prefill(20, 0, CUTS)))
    assert [frame.part for frame in exported(run(core).steps)] == [None] * 5, "none of it is computed"


def test_an_answer_over_pages_that_came_in_parts_is_that_of_an_unharmed_engine() -> None:
    sender, receiver, early = wide_core(), wide_core(), Early()
    sender.take_early = early
    sender.apply(Submit(sequence("p", PROMPT), Prefill(23, 0, CUTS)))
    run(sender)
    receiver.apply(Submit(sequence("a", PROMPT), AWAITING))
    run(receiver)
    for page in joined(exported(early)):
        receiver.apply(Land(SequenceId("a"), page))
    receiver.apply(Run(SequenceId("a")))
    ran = run(receiver)
    assert ran.tokens("a") == continuation(PROMPT, GREEDY)
    assert ran.steps[0].ran_tokens == 1


@in_virtual_time
async def test_the_simulated_engine_brings_the_groups_at_even_distances_within_a_step() -> None:
    clock = LoopClock()
    engine = SimulatedEngine(SPEC, 64, Limits(24, 4), StepProfile(base_ms=300), clock)
    engine.tell(Submit(sequence("p", PROMPT), Prefill(23, 0, CUTS)))
    came: list[float] = []
    async for output in engine.steps():
        came.append(round(clock.now(), 6))
        if any(isinstance(event, Prefilled) for event in output.events):
            break
    assert [round(later - earlier, 3) for earlier, later in pairwise(came)] == [0.1, 0.1, 0.0]
    assert came[0] == pytest.approx(0.1, abs=1e-3)


def test_a_real_model_writes_the_same_pages_layer_by_layer(engine: Callable[..., EngineCore]) -> None:
    """One step of two prompts, and one that was begun in the step before."""
    pages: list[dict[tuple[str, int], bytes]] = []
    layers = engine().spec.layers
    for cuts in ((), tuple(range(1, layers + 1))):
        core, early = engine(step_tokens=96), Early()
        core.take_early = early
        for name in "pq":
            wanted = answering.sequence(name, answering.prompt(100 + ord(name)), answering.GREEDY)
            core.apply(Submit(wanted, Prefill(len(wanted.prompt) - 1, 0, cuts)))
        outputs = list[StepOutput]()
        while core.busy:
            outputs.append(core.step())
        assert (exported(early) == []) == (not cuts)
        assert (exported(outputs) == []) == bool(cuts), "the last layer is written before the step is over"
        found: dict[tuple[str, int], bytes] = {}
        for output in early + outputs:
            for event in output.events:
                if isinstance(event, Exported):
                    place = (event.sequence, event.frame.index)
                    found[place] = found.get(place, b"") + bytes(event.frame.payload)
        pages.append(found)
    whole, parts = pages
    assert whole
    assert parts == whole
