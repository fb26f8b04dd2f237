"""Times the native engine: `python -m runtime.engine.timing.native JSON` prints its `EngineTimes` as JSON."""

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from runtime.domain.batching import Limits
from runtime.domain.pages import pages_for
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import DecodeLocal, Generated, Submit
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native
from runtime.engine.timing.plan import EnginePlan, EngineTimes
from runtime.ids import SequenceId

_PAGE_TOKENS = 32
_STEP_TOKENS = 512
_SALT = bytes(16)


class Timed:
    """An engine core and a clock; every prompt is fresh, so the prefix cache never helps."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._numbers = itertools.count()
        self._core = _core(plan)

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
            began = time.perf_counter()
            output = self._core.step()
            taken = time.perf_counter() - began
            if output.ran_tokens == output.ran_sequences == streams:
                steps.append(taken)
        return statistics.median(steps)

    def _submit(self, tokens: int, answer: int) -> None:
        prompt = tuple(self._plan.prompt(tokens, next(self._numbers)))
        name = SequenceId(f"timed-{len(prompt)}-{next(self._numbers)}")
        sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
        self._core.apply(Submit(Sequence(name, prompt, sampling, _SALT), DecodeLocal()))

    def _run_until_generated(self) -> None:
        while not any(isinstance(event, Generated) for event in self._core.step().events):
            pass

    def _drain(self) -> None:
        while self._core.busy:
            self._core.step()


def run(plan: EnginePlan) -> EngineTimes:
    timed = Timed(plan)
    timed.first_s(plan.context)
    times = EngineTimes({str(tokens): [] for tokens in plan.prompts}, [], [])
    for _ in range(plan.rounds):
        for tokens in plan.prompts:
            times.first_ms[str(tokens)].append(timed.first_s(tokens) * 1000)
        times.itl_ms.append(timed.decode_s(1) * 1000)
        times.tokens_per_s.append(plan.batch / timed.decode_s(plan.batch))
    return times


def _core(plan: EnginePlan) -> EngineCore:
    settings = NativeSettings("timed", Path(plan.model), plan.dtype, _PAGE_TOKENS, plan.threads)
    together = plan.batch * (plan.context + plan.steps + plan.batch + 1)
    pages = pages_for(max(together, *plan.prompts) + 1, _PAGE_TOKENS) + plan.batch
    return build_native(settings, Limits(_STEP_TOKENS, plan.batch), lambda _: pages)


def main() -> None:
    plan = EnginePlan(**json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(run(plan))))


if __name__ == "__main__":
    main()
