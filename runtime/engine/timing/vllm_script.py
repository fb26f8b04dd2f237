"""Times vLLM by its offline interface; run as a script by a Python that has vLLM, so it imports nothing of Baton.

`PYTHON vllm_script.py JSON` prints, as its last line, the same JSON as the other engines' timings.
"""

import itertools
import json
import os
import random
import sys
import time
from typing import Any

# Of itself it leaves a core to its scheduler, and takes half of the memory for KV.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


class Timed:
    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams, TokensPrompt

        self.plan = plan
        self.sampling, self.prompted = SamplingParams, TokensPrompt
        self.numbers = itertools.count()
        longest = max(*plan["prompts"], plan["context"] + plan["steps"] + 16)
        self.engine = LLM(
            plan["model"],
            dtype=plan["dtype"],
            max_model_len=longest + 64,
            max_num_seqs=max(plan["batch"], 2),
            enable_prefix_caching=False,
        )

    def generate_s(self, tokens: int, answer: int, streams: int = 1) -> float:
        prompts = [self.prompted(prompt_token_ids=self.prompt(tokens)) for _ in range(streams)]
        sampling = self.sampling(temperature=0.0, max_tokens=answer, min_tokens=answer, ignore_eos=True)
        began = time.perf_counter()
        self.engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - began

    def decode_s(self, streams: int) -> float:
        context: int = self.plan["context"]
        few, steps = 2, int(self.plan["steps"])
        short = self.generate_s(context, few, streams)
        return (self.generate_s(context, few + steps, streams) - short) / steps

    def prompt(self, tokens: int) -> list[int]:
        source = random.Random(next(self.numbers))
        return [source.randrange(self.plan["vocab"]) for _ in range(tokens)]


def main() -> None:
    plan = json.loads(sys.argv[1])
    # Whatever vLLM and its processes print goes where errors go: the answer stands alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    timed = Timed(plan)
    timed.generate_s(plan["context"], 2)
    first_ms: dict[str, list[float]] = {str(tokens): [] for tokens in plan["prompts"]}
    times: dict[str, Any] = {"first_ms": first_ms, "itl_ms": [], "tokens_per_s": []}
    for _ in range(plan["rounds"]):
        for tokens in plan["prompts"]:
            first_ms[str(tokens)].append(timed.generate_s(tokens, 1) * 1000)
        times["itl_ms"].append(timed.decode_s(1) * 1000)
        times["tokens_per_s"].append(plan["batch"] / timed.decode_s(plan["batch"]))
    with answer:
        answer.write("\n" + json.dumps(times) + "\n")


if __name__ == "__main__":
    main()
