"""How much of a transfer its prefill hides: for the KV of a small and of a large model, by each path. A part of
`baton bench handoff`.

Computing is simulated, moving is not: workers in processes of their own, and pages as large as the model's. What the
path alone takes is measured in turns with it, by a second prefill worker that computes in no time.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from runtime.cli.bench.host import host
from runtime.cli.bench.probe import Timing, probing
from runtime.cli.bench.report import Cell
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, WorkerConfig
from runtime.domain.messages import PrefillCandidate
from runtime.ids import BootId, WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.simulating import SimulatedConfig, SimulatedKvConfig

STATED = 8192
_VOCAB = 256
_WARM_UP = 1024
_STEP_MS = 25.0
_Say = Callable[[str], None]
_Transport = Literal["auto", "grpc"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model by its KV; `token_ms` is what computing a token takes, and a page travels in `layer_groups` parts."""

    name: str
    kv: SimulatedKvConfig
    token_ms: float
    layer_groups: int


# About what 8 billion parameters take at 160 TFLOP/s, and 146 million at 1.2.
SMALL = Shape("146 M", SimulatedKvConfig(layers=12, kv_heads=8, head_dim=64, dtype="bfloat16"), 0.25, 1)
LARGE = Shape("8 B", SimulatedKvConfig(layers=32, kv_heads=8, head_dim=128, dtype="bfloat16"), 0.1, 8)
LARGE_WHOLE = Shape("8 B, whole pages", LARGE.kv, LARGE.token_ms, 1)


@dataclass(frozen=True, slots=True)
class Pace:
    """Each length in `lengths` is measured in `rounds`, by each of `transports`, for the KV of each of `shapes`."""

    lengths: tuple[int, ...]
    rounds: int
    transports: tuple[_Transport, ...]
    shapes: tuple[Shape, ...] = (SMALL, LARGE_WHOLE, LARGE)


FULL = Pace((512, 1024, 2048, 4096, STATED, 16_384), 3, ("auto", "grpc"))
QUICK = Pace((512, STATED), 1, ("auto",), (SMALL, LARGE))


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of a prompt: `link_ms` is what the path takes for its pages alone."""

    shape: Shape
    path: str
    tokens: int
    bytes: int
    link_ms: float
    prefill_ms: float
    exposed_ms: float

    @property
    def hideable(self) -> bool:
        """Whether the path is as fast as the computing."""
        return self.link_ms <= self.shape.token_ms * self.tokens

    @property
    def share(self) -> float:
        """Of the prefill, what its transfer took beyond it."""
        return self.exposed_ms / self.prefill_ms

    def row(self) -> dict[str, Cell]:
        return {
            "kv_of": self.shape.name,
            "path": self.path,
            "tokens": self.tokens,
            "moved_mib": round(self.bytes / 2**20, 1),
            "link_gb_s": round(self.bytes / self.link_ms / 1e6, 3),
            "link_ms": round(self.link_ms, 1),
            "prefill_ms": round(self.prefill_ms, 1),
            "exposed_ms": round(self.exposed_ms, 2),
            "exposed_share": round(self.share, 4),
            "could_be_hidden": "yes" if self.hideable else "no",
        }


def measure(pace: Pace, say: _Say) -> list[Overlap]:
    found: list[Overlap] = []
    for shape in pace.shapes:
        for transport in pace.transports:
            say(f"KV of {shape.name}: starting workers")
            with _workers(shape, transport, max(pace.lengths)) as (decode, alone, beside):
                found += asyncio.run(_timed(shape, decode, (alone, beside), pace, say))
    return found


def figures(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """The largest share that the stated length exposes where its path could hide it, and what layers gain there."""
    stated = [each for each in overlaps if each.tokens == STATED and each.hideable]
    shares = {
        "exposed_share_8192": [each.share for each in stated if each.shape != LARGE_WHOLE],
        "exposed_share_8192_whole_pages": [each.share for each in stated if each.shape == LARGE_WHOLE],
    }
    return {name: round(max(found), 4) for name, found in shares.items() if found}


def remarks(overlaps: Sequence[Overlap]) -> tuple[str, ...]:
    """What the figures are of, and where no path could hide the transfer."""
    told = [
        "Overlap: computing is simulated (146 M: 0.25 ms a token, 8 B: 0.1), moving is real, between two processes. "
        "'link ms' is the path alone, making the pages included; a device's own copies are in none of these.",
    ]
    places = {(each.shape.name, each.path) for each in overlaps if not each.hideable}
    for name, path in sorted(places):
        here = [each for each in overlaps if (each.shape.name, each.path) == (name, path) and not each.hideable]
        rate = statistics.median(each.bytes / each.link_ms for each in here) / 1e6
        needed = here[0].bytes / (here[0].tokens * here[0].shape.token_ms) / 1e6
        lengths = ", ".join(f"{each.tokens:,}" for each in here)
        told.append(
            f"Cannot be hidden: KV of {name} by {path} at {lengths} tokens: it is computed at {needed:.2f} GB/s, and "
            f"the path takes {rate:.2f}."
        )
    return tuple(told)


async def _timed(shape: Shape, decode: str, prefill: tuple[str, str], pace: Pace, say: _Say) -> list[Overlap]:
    arms = [(PrefillCandidate(WorkerId(f"prefill-{each}"), BootId("bench"), prefill[each]),) for each in range(2)]
    timings: dict[int, list[tuple[Timing, Timing]]] = {tokens: [] for tokens in pace.lengths}
    async with probing(decode, _VOCAB) as probe:
        for arm in arms:
            await probe.measure(_WARM_UP, arm)
        for number in range(pace.rounds):
            for tokens in pace.lengths:
                say(f"KV of {shape.name}: {tokens:,} tokens, round {number + 1} of {pace.rounds}")
                alone, beside = [await probe.measure(tokens, arm) for arm in arms]
                timings[tokens].append((alone, beside))
    return [_overlap(shape, tokens, *map(_median, zip(*each, strict=True))) for tokens, each in timings.items()]


def _median(timings: Sequence[Timing]) -> Timing:
    return sorted(timings, key=_pushing_ms)[len(timings) // 2]


def _pushing_ms(timing: Timing) -> float:
    return timing.handoff.prefill_ms + timing.handoff.exposed_ms


def _overlap(shape: Shape, tokens: int, alone: Timing, beside: Timing) -> Overlap:
    moved = beside.handoff
    return Overlap(
        shape, moved.transport, tokens, moved.moved_bytes, _pushing_ms(alone), moved.prefill_ms, moved.exposed_ms
    )


@contextmanager
def _workers(shape: Shape, transport: _Transport, most: int) -> Iterator[tuple[str, str, str]]:
    """The addresses of a decode worker, of a prefill worker that computes in no time, and of one that takes its time;
    their pools hold two prompts of `most` tokens."""
    with TemporaryDirectory(prefix="baton-bench-") as folder, ExitStack() as stack:
        config = Config(
            mesh=MeshConfig(name="bench", state=Path(folder)),
            model=ModelConfig(simulated=SimulatedConfig(token_ms=shape.token_ms, kv=shape.kv)),
            engine=EngineConfig(pages=2 * most // EngineConfig().page_tokens),
            workers=(WorkerConfig(name="decode", role="decode"), WorkerConfig(name="prefill", role="prefill", count=2)),
            handoff=HandoffConfig(remote_min_tokens=1, transport=transport, layer_groups=shape.layer_groups),
        )
        controller = stack.enter_context(host(config, "controller"))["grpc"]

        def start(worker: str, computing: SimulatedConfig) -> str:
            apart = config.model_copy(update={"model": ModelConfig(simulated=computing)})
            return stack.enter_context(host(apart, "worker", controller, worker))["grpc"]

        # Decoding takes a while, since the prefill worker's report comes after the first tokens.
        decoding = SimulatedConfig(base_ms=_STEP_MS, kv=shape.kv)
        computing = [SimulatedConfig(token_ms=token_ms, kv=shape.kv) for token_ms in (0.0, shape.token_ms)]
        with ThreadPoolExecutor() as starting:
            decode, alone, beside = starting.map(start, ("decode-0", "prefill-0", "prefill-1"), (decoding, *computing))
        yield decode, alone, beside
