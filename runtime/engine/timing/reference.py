"""Times transformers' own `generate`: `python -m runtime.engine.timing.reference JSON` prints `EngineTimes` as JSON."""

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from runtime.engine.kv_tensors import DTYPES
from runtime.engine.timing.plan import EnginePlan, EngineTimes
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model


class Timed:
    """The model as transformers runs it by default, with torch's own attention."""

    def __init__(self, plan: EnginePlan) -> None:
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._numbers = itertools.count()
        self._model: Any = load_model(open_checkpoint(Path(plan.model)), DTYPES[plan.dtype], "sdpa")

    def first_s(self, tokens: int) -> float:
        return self._generate(tokens, 1, 1)[0]

    def decode_s(self, streams: int) -> float:
        """Seconds of a step in which all streams decode: the median."""
        ends = self._generate(self._plan.context, self._plan.steps, streams)
        return statistics.median(later - earlier for earlier, later in pairwise(ends))

    def _generate(self, tokens: int, answer: int, streams: int) -> list[float]:
        """Seconds from the call to each step's logits."""
        prompts = torch.tensor([self._plan.prompt(tokens, next(self._numbers)) for _ in range(streams)])
        ends: list[float] = []
        began = time.perf_counter()

        def note(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            ends.append(time.perf_counter() - began)
            return logits

        self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            min_new_tokens=answer,
            max_new_tokens=answer,
            do_sample=False,
            pad_token_id=0,
            logits_processor=[note],
        )
        return ends


def run(plan: EnginePlan) -> EngineTimes:
    timed = Timed(plan)
    timed.decode_s(2)
    times = EngineTimes({str(tokens): [] for tokens in plan.prompts}, [], [])
    for _ in range(plan.rounds):
        for tokens in plan.prompts:
            times.first_ms[str(tokens)].append(timed.first_s(tokens) * 1000)
        times.itl_ms.append(timed.decode_s(1) * 1000)
        times.tokens_per_s.append(plan.batch / timed.decode_s(plan.batch))
    return times


def main() -> None:
    plan = EnginePlan(**json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(run(plan))))


if __name__ == "__main__":
    main()
