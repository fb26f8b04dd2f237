"""`baton bench resume`: what it takes to go on with a long history whose KV is not in the pool any more.

One decode worker whose pool has room for one history. Two histories take turns, so that each resumption finds the pool
full of the other: first from host memory, then, after a restart, from the store.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from runtime.cli.bench.host import host
from runtime.cli.bench.probe import Probe, Timing
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.shape import VOCAB, fast_dtype, stretched_146m
from runtime.clients.channels import Channels
from runtime.clients.peers import GrpcPeers
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, WorkerConfig
from runtime.domain.messages import Handoff
from runtime.domain.spec import ModelSpec
from runtime.errors import StartError
from runtime.ids import GatewayId
from runtime.kv.tiers.pages import PageCodec
from runtime.model.checkpoint import open_checkpoint
from runtime.model.spec import sized_spec
from runtime.tiering import LOCAL, KvKeepingConfig, TiersConfig

_HISTORY, _QUICK_HISTORY = 8192, 1024
_TIMES, _QUICK_TIMES = 4, 2
_SPARE_PAGES = 16
_WRITTEN_S = 120.0
_LOOK_S = 0.05

_Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Arm:
    """The resumptions from one tier, and how fast its path is alone, in bytes a second."""

    name: str
    timings: Sequence[Timing]
    rate: float

    @property
    def first_s(self) -> float:
        return statistics.median(timing.first_s for timing in self.timings)

    @property
    def step_s(self) -> float:
        return statistics.median(timing.step_s for timing in self.timings)


def resume(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter history; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the time to the first token of a turn whose history is in host memory (warm) or in a store (cold).

    Over the floor: that time less two decode steps, to the time in which the path moves these bytes alone. The speedup
    is to computing the history anew in the same run.
    """
    machine, history, times = Machine.here(), *((_QUICK_HISTORY, _QUICK_TIMES) if quick else (_HISTORY, _TIMES))
    with (
        Console(stderr=True).status("starting a worker") as status,
        TemporaryDirectory(prefix="baton-bench-") as folder,
    ):
        report = _measure(machine, Path(folder), history, times, status.update)
    tell(report, as_json=as_json)


def _measure(machine: Machine, folder: Path, history: int, times: int, say: _Say) -> Report:
    model = stretched_146m(folder / "model", 2 * _HISTORY)
    spec = _spec(model)
    pages, warm_config = history // spec.page_tokens, _config(folder, model, history, spec)
    with _worker(warm_config) as address:
        prompts, fresh, warm = asyncio.run(_fresh_and_warm(address, folder / "kv", pages, history, times, say))
    with _worker(_without_memory(warm_config)) as address:
        say("resuming from the store")
        cold = asyncio.run(_cold(address, prompts, times))
    say("how fast the paths are alone")
    from runtime.engine.timing.loading import cold_rate, host_rate  # imports torch

    arms = [
        _Arm("warm", warm, host_rate(spec, pages)),
        _Arm("cold", cold, cold_rate(spec, pages, folder / "alone")),
    ]
    return _report(machine, history, pages * spec.page_bytes, fresh, arms)


async def _fresh_and_warm(
    address: str, store: Path, pages: int, history: int, times: int, say: _Say
) -> tuple[list[tuple[int, ...]], list[Timing], list[Timing]]:
    async with _probe(address) as probe:
        await probe.measure(64, ())
        prompts, fresh = [probe.fresh(history + 1) for _ in range(2)], []
        for count, prompt in enumerate(prompts, 1):
            say(f"computing a history of {history:,} tokens")
            fresh.append(await probe.measure_prompt(prompt))
            await _written(store, count * pages)
        say("resuming from host memory")
        warm = [await _resumed(probe, prompt, lambda told: told.host_tokens) for prompt in prompts * times]
    return prompts, fresh, warm


async def _cold(address: str, prompts: Sequence[tuple[int, ...]], times: int) -> list[Timing]:
    async with _probe(address) as probe:
        await probe.measure(64, ())
        return [await _resumed(probe, prompt, lambda told: told.cold_tokens) for prompt in [*prompts] * times]


async def _resumed(probe: Probe, prompt: tuple[int, ...], loaded: Callable[[Handoff], int]) -> Timing:
    timing = await probe.measure_prompt(prompt)
    if loaded(timing.handoff) != len(prompt) - 1:
        raise StartError(f"a resumption loaded {loaded(timing.handoff)} of {len(prompt) - 1} tokens: {timing.handoff}")
    return timing


async def _written(store: Path, pages: int) -> None:
    """Wait until so many pages are in the store."""
    ends = time.perf_counter() + _WRITTEN_S
    while await asyncio.to_thread(_count, store) < pages:
        if time.perf_counter() > ends:
            raise StartError(f"{pages} pages were not written within {_WRITTEN_S:.0f} s")
        await asyncio.sleep(_LOOK_S)


def _count(store: Path) -> int:
    return sum(file.is_file() for file in store.rglob("*-*"))


def _report(machine: Machine, history: int, size: int, fresh: Sequence[Timing], arms: Sequence[_Arm]) -> Report:
    computed_s = statistics.median(timing.first_s for timing in fresh)
    ratios: dict[str, float] = {}
    rows: list[dict[str, Cell]] = []
    for arm in arms:
        floor_s = size / arm.rate
        over, speedup = max(arm.first_s - 2 * arm.step_s, 0) / floor_s, computed_s / arm.first_s
        ratios[f"{arm.name}_over_floor_{history}"] = round(over, 3)
        ratios[f"{arm.name}_speedup_{history}"] = round(speedup, 2)
        rows.append(
            {
                "resumed": arm.name,
                "tokens": history,
                "mib": round(size / 2**20, 1),
                "times": len(arm.timings),
                "ttft_ms": round(arm.first_s * 1000, 1),
                "worst_ttft_ms": round(max(timing.first_s for timing in arm.timings) * 1000, 1),
                "load_ms": round(statistics.median(timing.handoff.load_ms for timing in arm.timings), 1),
                "step_ms": round(arm.step_s * 1000, 1),
                "path_gb_per_s": round(arm.rate / 1e9, 2),
                "floor_ms": round(floor_s * 1000, 1),
                "computed_ttft_ms": round(computed_s * 1000, 1),
            }
        )
    wanted = {f"{arm.name}_over_floor_{_HISTORY}": Bound(1.5) for arm in arms}
    remarks = (
        f"146 M parameters in {fast_dtype()}, one thread; times are medians. The path alone is one thread that reads, "
        "checks and writes into a pool.",
        "The store is a folder that this machine wrote a moment ago: its files are in the kernel's cache.",
    )
    return Report("resume", machine, tuple(rows), ratios, wanted, remarks)


def _spec(model: Path) -> ModelSpec:
    page_tokens = EngineConfig().page_tokens
    spec = sized_spec(open_checkpoint(model), name="llama-146m", dtype=fast_dtype(), page_tokens=page_tokens)
    # Of pages that are made up: any fingerprint will do.
    return replace(spec, kv_fingerprint="00" * 16)


def _config(folder: Path, model: Path, history: int, spec: ModelSpec) -> Config:
    pages = history // spec.page_tokens
    memory_bytes = (2 * pages + _SPARE_PAGES) * PageCodec(spec).page_bytes
    return Config(
        mesh=MeshConfig(name="bench", state=folder),
        model=ModelConfig(path=str(model), dtype=fast_dtype()),
        # So few that a history leaves nothing of the other in the pool.
        engine=EngineConfig(pages=pages + 1, max_running=1),
        workers=(WorkerConfig(name="decode", role="decode"),),
        kv=KvKeepingConfig(tiers=TiersConfig(host_mib=(memory_bytes >> 20) + 1, cold=LOCAL, patience_s=10.0)),
    )


def _without_memory(config: Config) -> Config:
    tiers = config.kv.tiers.model_copy(update={"host_mib": 0})
    return config.model_copy(update={"kv": KvKeepingConfig(tiers=tiers)})


@asynccontextmanager
async def _probe(decode: str) -> AsyncIterator[Probe]:
    async with Channels() as channels, GrpcPeers(channels, GatewayId("bench")).decode(decode).attach() as stream:
        probe = Probe(stream, VOCAB)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(probe.run())
            await probe.wait_ready()
            yield probe
            running.cancel()


@contextmanager
def _worker(config: Config) -> Iterator[str]:
    """The address of the decode worker."""
    with host(config, "controller") as controller, host(config, "worker", controller["grpc"], "decode-0") as worker:
        yield worker["grpc"]
