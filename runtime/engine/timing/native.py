"""Times the native engine: `python -m runtime.engine.timing.native JSON` prints its `EngineTimes` as JSON."""

import itertools
import json
import math
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from runtime.domain.batching import Limits
from runtime.domain.pages import pages_for
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import DecodeLocal, Generated, StepOutput, Submit
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native
from runtime.engine.timing.plan import EnginePlan, EngineTimes
from runtime.ids import SequenceId

_PAGE_TOKENS = 32
_STEP_TOKENS = 512
_SALT = bytes(16)
# As a worker has it by default.
_ITL_S = 0.25
_MIXED_STREAMS, _MIXED_TOKENS, _MIXED_PROMPT = 4, 128, 1024


class Timed:
    """An engine core and a clock; every prompt is fresh, so the prefix cache never helps."""

    def __init__(self, plan: EnginePlan, itl_s: float | None = None) -> None:
        self._plan = plan
        self._numbers = itertools.count()
        self._core = _core(plan, itl_s)

    def first_s(self, tokens: int) -> float:
        began = time.perf_counter()
        self._submit(tokens, 1)
        self._run_until_generated()
        taken = time.perf_counter() - began
        self._drain()
        return taken

    def decode_s(self, streams: int) -> float:
        """Seconds of a step in which all streams decode: the median."""
        for _ in range(streams):
            self._submit(self._plan.context, self._plan.steps + streams)
        steps = []
        while self._core.busy:
            output, taken = self._step()
            if output.ran_tokens == output.ran_sequences == streams:
                steps.append(taken)
        return statistics.median(steps)

    def itl_p99_s(self, *, prefilling: bool) -> float:
        """Seconds that one in a hundred tokens of streams that decode waits for longer; with long prompts prefilled
        beside them, each as soon as the one before has its first token."""
        streams = {self._submit(self._plan.context, _MIXED_TOKENS) for _ in range(_MIXED_STREAMS)}
        waits: list[float] = []
        prompt: SequenceId | None = None
        decoding = False
        while self._core.busy:
            if prefilling and decoding and prompt is None:
                prompt = self._submit(_MIXED_PROMPT, 1)
            output, taken = self._step()
            told = {event.sequence for event in output.events if isinstance(event, Generated)}
            if decoding and streams <= told:
                waits.append(taken)
            elif waits:
                break
            decoding |= streams <= told
            prompt = None if prompt in told else prompt
        self._drain()
        return sorted(waits)[math.ceil(0.99 * len(waits)) - 1]

    def _step(self) -> tuple[StepOutput, float]:
        """A step and its seconds, which the engine is told too."""
        began = time.perf_counter()
        output = self._core.step()
        taken = time.perf_counter() - began
        self._core.took(taken)
        return output, taken

    def _submit(self, tokens: int, answer: int) -> SequenceId:
        prompt = tuple(self._plan.prompt(tokens, next(self._numbers)))
        name = SequenceId(f"timed-{len(prompt)}-{next(self._numbers)}")
        sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
        self._core.apply(Submit(Sequence(name, prompt, sampling, _SALT), DecodeLocal()))
        return name

    def _run_until_generated(self) -> None:
        while not any(isinstance(event, Generated) for event in self._step()[0].events):
            pass

    def _drain(self) -> None:
        while self._core.busy:
            self._step()


def run(plan: EnginePlan) -> EngineTimes:
    timed = Timed(plan)
    timed.first_s(plan.context)
    times = EngineTimes({str(tokens): [] for tokens in plan.prompts}, [], [])
    for _ in range(plan.rounds):
        for tokens in plan.prompts:
            times.first_ms[str(tokens)].append(timed.first_s(tokens) * 1000)
        times.itl_ms.append(timed.decode_s(1) * 1000)
        times.tokens_per_s.append(plan.batch / timed.decode_s(plan.batch))
    del timed
    mixed = Timed(plan, _ITL_S)
    for _ in range(plan.rounds):
        times.alone_p99_ms.append(mixed.itl_p99_s(prefilling=False) * 1000)
        times.mixed_p99_ms.append(mixed.itl_p99_s(prefilling=True) * 1000)
    return times


def _core(plan: EnginePlan, itl_s: float | None) -> EngineCore:
    settings = NativeSettings("timed", Path(plan.model), plan.dtype, _PAGE_TOKENS, plan.threads)
    together = plan.batch * (plan.context + plan.steps + plan.batch + 1)
    mixed = _MIXED_STREAMS * (plan.context + _MIXED_TOKENS) + _MIXED_PROMPT
    pages = pages_for(max(together, mixed, *plan.prompts) + 1, _PAGE_TOKENS) + plan.batch
    return build_native(settings, Limits(_STEP_TOKENS, plan.batch, itl_s), lambda _: pages)


def main() -> None:
    plan = EnginePlan(**json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(run(plan))))


if __name__ == "__main__":
    main()
