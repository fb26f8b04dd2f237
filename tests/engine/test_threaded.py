"""An engine core on its own thread: it starts, tells its failures, never runs far ahead, and always ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from llguidance import LLTokenizer

from runtime.domain.batching import Limits
from runtime.domain.grammar import one_of
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import Sampled, Sampling, Sequence
from runtime.domain.steps import Cancel, Chunk, DecodeLocal, Generated, StepOutput, Submit
from runtime.engine.core import EngineCore, SampleRow
from runtime.engine.grammar import Grammars
from runtime.engine.simulated import (
    SimulatedCompute,
    SimulatedDecoder,
    continuation,
    simulated_grammars,
    simulated_spec,
)
from runtime.engine.threaded import ThreadedEngine
from runtime.errors import EngineFailed, InvariantViolation, ModelError
from runtime.ids import SequenceId

SPEC = simulated_spec("simulated", 4, 256)
SAMPLING = Sampling(max_tokens=20, temperature=0.0)
SUBMIT = Submit(Sequence(SequenceId("a"), (1, 2, 3), SAMPLING, b"salt"), DecodeLocal())


class Counting(SimulatedCompute):
    """Lets a test wait for steps, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(64, 4)
        self.ran = threading.Semaphore(0)
        self.runs = 0
        self.fails_at = 1_000_000

    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> tuple[list[Sampled], list[PromptScores]]:
        self.runs += 1
        self.ran.release()
        if self.runs == self.fails_at:
            raise RuntimeError("the device is gone")
        return super().run(chunks, rows)


def core_of(compute: Counting) -> EngineCore:
    return EngineCore(SPEC, 64, Limits(8, 4), compute, frozenset(), SimulatedDecoder)


@asynccontextmanager
async def started(build: Callable[[], EngineCore]) -> AsyncIterator[ThreadedEngine]:
    engine = ThreadedEngine(build)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
        assert not engine._thread.is_alive()


async def until_finished(engine: ThreadedEngine) -> list[StepOutput]:
    outputs = []
    async for output in engine.steps():
        outputs.append(output)
        if any(isinstance(event, Generated) and event.finish for event in output.events):
            return outputs
    raise AssertionError("unreachable")


async def test_it_serves_what_it_is_told() -> None:
    async with started(lambda: core_of(Counting())) as engine:
        assert engine.spec == SPEC
        engine.tell(SUBMIT)
        outputs = await until_finished(engine)
        tokens = [s.token for o in outputs for event in o.events if isinstance(event, Generated) for s in event.tokens]
        assert tokens == continuation((1, 2, 3), SAMPLING)
        assert engine.load() == outputs[-1].load
        engine.check()


async def test_a_grammar_is_compiled_while_others_go_on() -> None:
    """Its vocabulary is not there yet: its commands wait, a cancel among them, and nobody else does."""
    there, before = threading.Event(), threading.enumerate()

    def vocabulary() -> LLTokenizer:
        there.wait()
        return simulated_grammars()._vocabulary()

    def build() -> EngineCore:
        return EngineCore(SPEC, 64, Limits(8, 4), Counting(), frozenset(), SimulatedDecoder, Grammars(vocabulary))

    constrained = replace(SAMPLING, grammar=one_of(["yes"]))
    slow, gone = (
        replace(SUBMIT, sequence=replace(SUBMIT.sequence, id=SequenceId(name), sampling=constrained))
        for name in ("slow", "gone")
    )
    async with started(build) as engine:
        for command in (gone, Cancel(SequenceId("gone")), slow, SUBMIT):
            engine.tell(command)
        assert len(await until_finished(engine)) == SAMPLING.max_tokens
        there.set()
        events = [event for output in await until_finished(engine) for event in output.events]
        tokens = [s.token for event in events if isinstance(event, Generated) for s in event.tokens]
        assert tokens == list(b"yes")
        assert not engine._held
        compiling = [each for each in threading.enumerate() if each.name.startswith("grammar") and each not in before]
        assert compiling
    for thread in compiling:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_the_core_lives_on_a_thread_of_its_own() -> None:
    threads = []

    def build() -> EngineCore:
        threads.append(threading.current_thread())
        return core_of(Counting())

    async with started(build):
        assert threads != [threading.current_thread()]


async def test_a_core_that_cannot_be_built_fails_the_start_with_its_own_error() -> None:
    def build() -> EngineCore:
        raise ModelError("no such checkpoint")

    with pytest.raises(ModelError, match="no such checkpoint"):
        async with started(build):
            pass


async def test_a_step_that_fails_is_told_after_all_steps_before_it() -> None:
    compute = Counting()
    compute.fails_at = 3
    async with started(lambda: core_of(compute)) as engine:
        engine.tell(SUBMIT)
        steps = engine.steps()
        assert [(await anext(steps)).step, (await anext(steps)).step] == [1, 2]
        with pytest.raises(EngineFailed, match="RuntimeError: the device is gone") as failed:
            await anext(steps)
        assert isinstance(failed.value.__cause__, RuntimeError)


async def test_a_command_that_fails_is_told() -> None:
    async with started(lambda: core_of(Counting())) as engine:
        engine.tell(SUBMIT)
        engine.tell(SUBMIT)
        with pytest.raises(EngineFailed, match="submitted twice") as failed:
            await until_finished(engine)
        assert isinstance(failed.value.__cause__, InvariantViolation)


async def test_it_does_not_run_far_ahead_of_who_takes_its_steps_and_ends_even_then() -> None:
    compute = Counting()
    async with started(lambda: core_of(compute)) as engine:
        engine.tell(SUBMIT)
        for _ in range(4):
            await asyncio.to_thread(compute.ran.acquire)
        assert compute.runs == 4
        first = await anext(engine.steps())
        assert first.step == 1
        await asyncio.to_thread(compute.ran.acquire)
        assert compute.runs == 5


async def test_it_sleeps_while_idle_and_wakes_by_a_command() -> None:
    compute = Counting()
    async with started(lambda: core_of(compute)) as engine:
        engine.tell(Cancel(SequenceId("nobody")))
        engine.tell(SUBMIT)
        await until_finished(engine)
        runs = compute.runs
        engine.tell(Submit(Sequence(SequenceId("b"), (5,), SAMPLING, b"salt"), DecodeLocal()))
        await until_finished(engine)
        assert compute.runs == runs + 20


async def test_one_that_never_started_can_be_closed() -> None:
    await ThreadedEngine(lambda: core_of(Counting())).close()


async def test_a_start_that_is_given_up_leaves_nothing_behind() -> None:
    building, go_on = threading.Event(), threading.Event()

    def build() -> EngineCore:
        building.set()
        go_on.wait()
        return core_of(Counting())

    engine = ThreadedEngine(build)
    async with asyncio.TaskGroup() as group:
        start = group.create_task(engine.start())
        await asyncio.to_thread(building.wait)
        start.cancel()
    go_on.set()
    await engine.close()
    assert not engine._thread.is_alive()
