"""`baton bench handoff`: what moving a prefill elsewhere costs, and from which length on it pays.

A decode and a prefill worker in processes of their own, one model, one thread each. The same decode worker runs both
arms, told of a prefill worker or not; every prompt is fresh, so no cache knows it.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from runtime.cli.bench import overlap
from runtime.cli.bench.host import host
from runtime.cli.bench.probe import Probe, Timing, probing
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.shape import VOCAB, fast_dtype, llama_146m
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, WorkerConfig
from runtime.domain.messages import PrefillCandidate
from runtime.ids import BootId, WorkerId
from runtime.kv_settings import REMOTE_MIN_TOKENS, HandoffConfig

_LONG = 2048
_WANTED = {
    "split_over_local_2048": Bound(1.03),
    "exposed_share_2048": Bound(0.05),
    "exposed_share_8192": Bound(0.05),
}

_Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Pace:
    """`lengths` are measured in `pairs` of the two arms, once on idle workers and once beside a neighbour that
    decodes; the longest, on idle workers, in `long_pairs` on each of `launches` workers, as far as `long_s` allows."""

    lengths: tuple[int, ...]
    pairs: int
    launches: int
    long_pairs: int
    long_s: float


_FULL = _Pace(lengths=(32, 64, 128, 256, 512, 1024, _LONG), pairs=5, launches=4, long_pairs=4, long_s=90)
_QUICK = _Pace(lengths=(64, 128), pairs=1, launches=1, long_pairs=3, long_s=20)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two arms, run one right after the other."""

    local: Timing
    split: Timing

    @property
    def ratio(self) -> float:
        """Of the times to the first token; the last prompt token runs as a decode step, so one step is taken off."""
        return (self.split.first_s - self.split.step_s) / self.local.first_s


@dataclass(frozen=True, slots=True)
class _Cell:
    tokens: int
    beside: bool
    pairs: Sequence[_Pair]

    def median(self, figure: Callable[[_Pair], float]) -> float:
        return statistics.median(map(figure, self.pairs))

    @property
    def gain_s(self) -> float:
        """What a request and its neighbour save together when the prefill runs elsewhere."""
        return self.median(lambda pair: _cost(pair.local) - _cost(pair.split))


def handoff(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer pairs; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare prefill here with prefill there: time to the first token, and what a neighbour that decodes waits.

    At 2,048 tokens the split path may cost at most 3%, one decode step aside, and what the prefill does not hide of the
    transfer at most 5% of the prefill. The crossover is the shortest prompt from which on a request and its neighbour
    together wait less when the prefill runs elsewhere.

    Then with simulated computing and pages of real size, as those of 8 B parameters are: what the prefill does not hide
    is at most 5% of it at 8,192 tokens wherever the path is as fast as the computing, and it is told where it is not.

    All of it takes some ten minutes on a machine that does nothing else.
    """
    machine, pace = Machine.here(), _QUICK if quick else _FULL
    with Console(stderr=True).status("") as status:
        cells = _measure(pace, status.update)
        overlaps = overlap.measure(overlap.QUICK if quick else overlap.FULL, status.update)
    tell(_report(machine, cells, overlaps), as_json=as_json)


def _measure(pace: _Pace, say: _Say) -> list[_Cell]:
    """The memory that a process happens to get makes it some percent slower or faster than the next, and who starts
    first is more often the faster: so the longest runs on several workers, which take turns in that too."""
    long_pairs: list[_Pair] = []
    cells: list[_Cell] = []
    for launch in range(pace.launches):
        say(f"starting two workers, {launch + 1} of {pace.launches}")
        with _workers("prefill" if launch % 2 else "decode") as (decode, prefill):
            lengths = pace.lengths if launch + 1 == pace.launches else ()
            asyncio.run(_measure_on((decode, prefill), pace, lengths, long_pairs, cells, say))
    cells.append(_Cell(_LONG, False, long_pairs))
    return sorted(cells, key=lambda cell: (cell.beside, cell.tokens))


async def _measure_on(
    workers: tuple[str, str],
    pace: _Pace,
    lengths: Sequence[int],
    long_pairs: list[_Pair],
    cells: list[_Cell],
    say: _Say,
) -> None:
    decode, prefill = workers
    there = (PrefillCandidate(WorkerId("prefill-0"), BootId("bench"), prefill),)
    async with probing(decode, VOCAB) as probe:
        say("warming up")
        await _pairs(probe, there, 64, 1)
        say(f"{_LONG:,} tokens, idle workers")
        long_pairs += await _pairs(probe, there, _LONG, pace.long_pairs, pace.long_s)
        for length in lengths:
            if length != _LONG:
                say(f"{length:,} tokens, idle workers")
                cells.append(_Cell(length, False, await _pairs(probe, there, length, pace.pairs)))
            say(f"{length:,} tokens, beside a neighbour")
            async with probe.neighbour():
                cells.append(_Cell(length, True, await _pairs(probe, there, length, pace.pairs)))


async def _pairs(
    probe: Probe, there: tuple[PrefillCandidate, ...], tokens: int, wanted: int, within_s: float = 300
) -> list[_Pair]:
    """Pairs take turns in which arm goes first, since a noisy machine gets slower or faster with time."""
    pairs: list[_Pair] = []
    ends = time.perf_counter() + within_s
    while len(pairs) < wanted and (not pairs or time.perf_counter() < ends):
        if len(pairs) % 2:
            split = await probe.measure(tokens, there)
            pairs.append(_Pair(await probe.measure(tokens, ()), split))
        else:
            local = await probe.measure(tokens, ())
            pairs.append(_Pair(local, await probe.measure(tokens, there)))
    return pairs


def _report(machine: Machine, cells: Sequence[_Cell], overlaps: Sequence[overlap.Overlap]) -> Report:
    (idle_long,) = (cell for cell in cells if cell.tokens == _LONG and not cell.beside)
    ratios = {"split_over_local_2048": round(idle_long.median(lambda pair: pair.ratio), 4)}
    # A prefill worker's report may come after the last of a few tokens.
    told = [pair.split.handoff for pair in idle_long.pairs if pair.split.handoff.prefill_ms]
    if told:
        ratios["exposed_share_2048"] = round(statistics.median(each.exposed_ms / each.prefill_ms for each in told), 4)
    crossover = _crossover([cell for cell in cells if cell.beside])
    if crossover is not None:
        ratios["crossover_tokens"] = crossover
    ratios |= overlap.figures(overlaps)
    remarks = (
        f"146 M parameters in {fast_dtype()}, one thread a worker; times are medians, and 'wait' is the neighbour's.",
        f"As long as nothing was measured, {REMOTE_MIN_TOKENS} tokens are prefilled elsewhere.",
        *overlap.remarks(overlaps),
    )
    more = {"overlap": tuple(each.row() for each in overlaps)}
    return Report("handoff", machine, tuple(map(_row, cells)), ratios, _WANTED, remarks, more)


def _row(cell: _Cell) -> dict[str, Cell]:
    moved = cell.pairs[-1].split.handoff
    return {
        "tokens": cell.tokens,
        "neighbour": "yes" if cell.beside else "no",
        "pairs": len(cell.pairs),
        "local_ttft_ms": round(cell.median(lambda pair: pair.local.first_s) * 1000, 1),
        "split_ttft_ms": round(cell.median(lambda pair: pair.split.first_s) * 1000, 1),
        "step_ms": round(cell.median(lambda pair: pair.split.step_s) * 1000, 1),
        "split_over_local": round(cell.median(lambda pair: pair.ratio), 3),
        "local_wait_ms": round(cell.median(lambda pair: pair.local.waited_s) * 1000, 1),
        "split_wait_ms": round(cell.median(lambda pair: pair.split.waited_s) * 1000, 1),
        "moved_kib": moved.moved_bytes // 1024,
        "transfer_ms": round(cell.median(lambda pair: pair.split.handoff.transfer_ms), 1),
        "exposed_ms": round(cell.median(lambda pair: pair.split.handoff.exposed_ms), 2),
    }


def _crossover(beside: Sequence[_Cell]) -> int | None:
    """The shortest length from which on moving always gains; None when the longest does not."""
    crossover = None
    for cell in sorted(beside, key=lambda cell: cell.tokens, reverse=True):
        if cell.gain_s < 0:
            break
        crossover = cell.tokens
    return crossover


def _cost(timing: Timing) -> float:
    return timing.first_s + timing.waited_s


@contextmanager
def _workers(first: str) -> Iterator[tuple[str, str]]:
    """The addresses of a decode and of a prefill worker, of which the one of the `first` role is started first."""
    with TemporaryDirectory(prefix="baton-bench-") as folder, ExitStack() as stack:
        config = Config(
            mesh=MeshConfig(name="bench", state=Path(folder)),
            model=ModelConfig(path=str(llama_146m()), dtype=fast_dtype()),
            engine=EngineConfig(kv_mib=1024),
            workers=(WorkerConfig(name="decode", role="decode"), WorkerConfig(name="prefill", role="prefill")),
            handoff=HandoffConfig(remote_min_tokens=1),
        )
        controller = stack.enter_context(host(config, "controller"))["grpc"]
        roles = sorted(("decode", "prefill"), key=lambda role: role != first)
        addresses = {role: stack.enter_context(host(config, "worker", controller, f"{role}-0")) for role in roles}
        yield addresses["decode"]["grpc"], addresses["prefill"]["grpc"]
