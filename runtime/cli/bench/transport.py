"""`baton bench transport`: how fast pages move by each path, beside what the same bytes cost bare, in one run.

The sender is this process, the receiver another; every round times all of them one after the other, so that a noisy
machine slows the parts of a ratio alike.
"""

import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import psutil
import typer
import uvloop
from rich.console import Console

from runtime.cli.bench.hosted import hosted
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.kv.transport.timing.fencing import fence_s, nixl_fence_s
from runtime.kv.transport.timing.plan import Listening, read_listening
from runtime.kv.transport.timing.senders import sending

_RECEIVER = "runtime.kv.transport.timing.receiver"
_START_S = 60.0
_STATED_KIB = 1024
_FENCES = 50
_WANTED = {
    "shm_vs_memcpy": Bound(0.8, at_least=True),
    "shm_verified_vs_memcpy": Bound(0.5, at_least=True),
    "grpc_vs_raw": Bound(0.5, at_least=True),
    "nixl_vs_raw": Bound(0.9, at_least=True),
}
_RATIOS = {
    "shm_vs_memcpy": ("shm_unverified", "memcpy"),
    "shm_verified_vs_memcpy": ("shm", "memcpy"),
    "grpc_vs_raw": ("grpc", "grpc_raw"),
    "nixl_vs_raw": ("nixl", "nixl_raw"),
}


@dataclass(frozen=True, slots=True)
class _Pace:
    """Each move of a page size in `pages_kib` has `mib` bytes, and `rounds` of them are timed."""

    pages_kib: tuple[int, ...]
    mib: int
    rounds: int


_FULL = _Pace(pages_kib=(64, _STATED_KIB, 4096), mib=256, rounds=5)
_QUICK = _Pace(pages_kib=(_STATED_KIB,), mib=128, rounds=3)


@dataclass(frozen=True, slots=True)
class _Timing:
    """`cpu_s` of both processes together."""

    wall_s: float
    cpu_s: float


_Timings = Mapping[str, list[_Timing]]


def transport(
    quick: Annotated[bool, typer.Option("--quick", help="One page size, fewer rounds; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time moving KV pages between two processes: shared memory and gRPC, beside memcpy, a socket and bare gRPC.

    The ratios are of pages of 1 MiB: shared memory without checksums and with both against copying once, and gRPC with
    checksums against raw bytes over as many connections.
    """
    # On one host UCX would copy from process to process, which no two hosts can: NIXL is for these.
    os.environ.setdefault("UCX_TLS", "tcp")
    machine, pace = Machine.here(), _QUICK if quick else _FULL
    timings: dict[int, _Timings] = {}
    with Console(stderr=True).status("") as status:
        for kib in pace.pages_kib:
            pages = (pace.mib << 10) // kib
            with hosted(_RECEIVER, {"page_bytes": kib << 10, "pages": pages}, start_s=_START_S) as listening:
                measuring = _measure(kib << 10, pages, pace.rounds, read_listening(listening), status.update)
                timings[kib] = uvloop.run(measuring)
        status.update("fences")
        fences = [_told(uvloop.run(fence_s(_STATED_KIB << 10, _FENCES)), "shared memory with 15 MiB")]
        if "nixl" in timings[_STATED_KIB]:
            fences.append(_told(uvloop.run(nixl_fence_s(_STATED_KIB << 10, _FENCES)), "NIXL with up to 32 MiB"))
    tell(_report(machine, pace, timings, fences), as_json=as_json)


async def _measure(page_bytes: int, pages: int, rounds: int, there: Listening, say: Callable[[str], None]) -> _Timings:
    timings: dict[str, list[_Timing]] = defaultdict(list)
    processes = (psutil.Process(), psutil.Process(there.pid))
    async with sending(page_bytes, there) as senders:
        # The first round makes connections and takes memory for the first time.
        for number in range(rounds + 1):
            for name, move in senders.moves.items():
                say(f"pages of {page_bytes >> 10:,} KiB, round {number} of {rounds}: {name}")
                cpu, began = _cpu_s(processes), time.perf_counter()
                await move(pages)
                timing = _Timing(time.perf_counter() - began, _cpu_s(processes) - cpu)
                if number:
                    timings[name].append(timing)
                await asyncio.sleep(0)
    return timings


def _cpu_s(processes: tuple[psutil.Process, ...]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def _report(machine: Machine, pace: _Pace, timings: Mapping[int, _Timings], fences: list[str]) -> Report:
    rows = tuple(_row(kib, name, pace.mib, each) for kib, moves in timings.items() for name, each in moves.items())
    remarks = (
        f"{pace.mib} MiB a move, {pace.rounds} rounds, medians; CPU seconds are of sender and receiver together.",
        "memcpy: one thread, page by page, from 64 MiB of pages into 64 MiB. A frame that shared memory brings is also "
        "copied out by its receiver; writing it into an engine's pool is not in any of these.",
        "nixl_raw: NIXL's own loop, one write a page and as many in flight, looked for without a pause on both sides, "
        "frames neither made nor checked nor copied out. Both over TCP (UCX_TLS=tcp), as between two hosts.",
        *fences,
        "A fence of a writer that is stopped takes as long as that lasts.",
    )
    return Report("transport", machine, rows, _ratios(timings[_STATED_KIB]), _WANTED, remarks)


def _told(fences: list[float], what: str) -> str:
    median, longest = statistics.median(fences) * 1000, max(fences) * 1000
    return f"A fence of {what} on their way took {median:.2f} ms, {longest:.2f} ms at most, of {len(fences)}."


def _row(kib: int, name: str, mib: int, timings: list[_Timing]) -> dict[str, Cell]:
    gigabytes = (mib << 20) / 1e9
    return {
        "page_kib": kib,
        "path": name,
        "gb_per_s": round(gigabytes / statistics.median(timing.wall_s for timing in timings), 3),
        "cpu_s_per_gb": round(statistics.median(timing.cpu_s for timing in timings) / gigabytes, 3),
    }


def _ratios(timings: _Timings) -> dict[str, float]:
    """Medians over the rounds of the ratio within a round: rates, so the more the better."""
    return {
        name: round(
            statistics.median(bare.wall_s / ours.wall_s for ours, bare in zip(timings[a], timings[b], strict=True)), 3
        )
        for name, (a, b) in _RATIOS.items()
        if a in timings
    }
