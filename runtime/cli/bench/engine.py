"""`baton bench engine`: the native engine beside transformers and vLLM, one checkpoint, one machine, one run."""

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from runtime.cli.bench.hosted import call, run_script
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.shape import VOCAB, fast_dtype, llama_146m
from runtime.engine.timing.plan import EnginePlan, EngineTimes

_NATIVE, _REFERENCE, _VLLM = "native", "transformers", "vllm"
_MODULES = {_NATIVE: "runtime.engine.timing.native", _REFERENCE: "runtime.engine.timing.reference"}
_VLLM_SCRIPT = Path(__file__).parents[2] / "engine" / "timing" / "vllm_script.py"
_LIMIT_S = 900.0
_BATCH = 16
_WANTED = {
    "decode16_vs_transformers": Bound(1.3, at_least=True),
    "decode16_vs_vllm": Bound(1.5, at_least=True),
    "itl_vs_transformers": Bound(0.9),
    "itl_over_floor": Bound(1.6),
    "ttft1024_vs_best": Bound(0.8),
    "ttft4096_vs_best": Bound(0.8),
    "mixed_itl_p99": Bound(2.0),
}


def engine(
    vllm: Annotated[str | None, typer.Option(metavar="PYTHON", help="A Python that has vLLM, to time it too.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round, no long prompt; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time the native engine's prefill and decode against transformers' generate and vLLM.

    All threads of this machine for each, one engine at a time, in turns.
    """
    machine = Machine.here()
    turns = 1 if quick else 3
    plan = EnginePlan(
        model=str(llama_146m()),
        dtype=fast_dtype(),
        threads=len(os.sched_getaffinity(0)),
        vocab=VOCAB,
        prompts=(1024,) if quick else (1024, 4096),
        context=128,
        batch=_BATCH,
        steps=16 if quick else 32,
        rounds=1,
    )
    with Console(stderr=True).status("") as status:
        times: dict[str, list[EngineTimes]] = {name: [] for name in _MODULES}
        for turn in range(turns):
            for name, module in _MODULES.items():
                status.update(f"{name}, turn {turn + 1} of {turns}")
                times[name].append(EngineTimes(**call(module, asdict(plan), timeout_s=_LIMIT_S)))
        if vllm is not None:
            status.update("vllm, which takes minutes to start")
            script = [vllm, str(_VLLM_SCRIPT), json.dumps(asdict(plan) | {"rounds": turns})]
            times[_VLLM] = [EngineTimes(**run_script(script, timeout_s=_LIMIT_S))]
        status.update("memory")
        bandwidth = float(call("runtime.engine.timing.memory", plan.threads, timeout_s=_LIMIT_S))
    tell(_report(machine, plan, {name: _joined(each) for name, each in times.items()}, bandwidth), as_json=as_json)


def _joined(turns: list[EngineTimes]) -> EngineTimes:
    return EngineTimes(
        {tokens: [ms for turn in turns for ms in turn.first_ms[tokens]] for tokens in turns[0].first_ms},
        [ms for turn in turns for ms in turn.itl_ms],
        [rate for turn in turns for rate in turn.tokens_per_s],
        [ms for turn in turns for ms in turn.alone_p99_ms],
        [ms for turn in turns for ms in turn.mixed_p99_ms],
    )


def _report(machine: Machine, plan: EnginePlan, times: Mapping[str, EngineTimes], bandwidth: float) -> Report:
    weights = Path(plan.model, "model.safetensors").stat().st_size
    floor_ms = weights / bandwidth * 1000
    remarks = (
        f"146 M parameters in {plan.dtype}, {plan.threads} threads, {plan.context} tokens of context; medians.",
        f"The floor of one stream's step is {floor_ms:.1f} ms: {weights >> 20} MiB of weights at "
        f"{bandwidth / 1e9:.1f} GB/s, as measured in this run.",
        *_mixed_in_words(times[_NATIVE]),
    )
    rows = tuple(_row(name, each) for name, each in times.items())
    return Report("engine", machine, rows, _ratios(times, floor_ms), _WANTED, remarks)


def _mixed_in_words(native: EngineTimes) -> tuple[str, ...]:
    if not native.mixed_p99_ms:
        return ()
    alone, mixed = statistics.median(native.alone_p99_ms), statistics.median(native.mixed_p99_ms)
    waits = f"{alone:.1f} ms alone, {mixed:.1f} ms while prompts of 1,024 tokens are prefilled beside them"
    return (f"Four streams of the native engine wait for a token, at the 99th percentile: {waits}.",)


def _row(name: str, times: EngineTimes) -> dict[str, Cell]:
    return {
        "engine": name,
        **{f"ttft_ms_{tokens}": round(statistics.median(ms), 1) for tokens, ms in times.first_ms.items()},
        "itl_ms": round(statistics.median(times.itl_ms), 2),
        f"tokens_per_s_{_BATCH}": round(statistics.median(times.tokens_per_s), 1),
    }


def _ratios(times: Mapping[str, EngineTimes], floor_ms: float) -> dict[str, float]:
    native = times[_NATIVE]
    itl_ms, rate = statistics.median(native.itl_ms), statistics.median(native.tokens_per_s)
    ratios = {
        f"decode{_BATCH}_vs_{name}": rate / statistics.median(other.tokens_per_s)
        for name, other in times.items()
        if name != _NATIVE
    }
    ratios["itl_vs_transformers"] = itl_ms / statistics.median(times[_REFERENCE].itl_ms)
    ratios["itl_over_floor"] = itl_ms / floor_ms
    for tokens, ms in native.first_ms.items():
        best = min(statistics.median(other.first_ms[tokens]) for name, other in times.items() if name != _NATIVE)
        ratios[f"ttft{tokens}_vs_best"] = statistics.median(ms) / best
    if native.mixed_p99_ms:
        ratios["mixed_itl_p99"] = statistics.median(native.mixed_p99_ms) / statistics.median(native.alone_p99_ms)
    return {name: round(ratio, 3) for name, ratio in ratios.items()}
