"""`baton bench recovery`: the pause that a client sees when the decode worker of its answer dies, or stops.

A mesh of processes, a gateway before them. What a prompt's prefill worker holds is the mirror; each time a fresh decode
worker takes over: twice from the mirror, once without it, and then it computes everything anew.
"""

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from batonmesh import AsyncClient, Event
from batonmesh.messages import whole
from runtime.cli.bench.host import host
from runtime.cli.bench.hosted import hosted
from runtime.cli.bench.probe import Probe
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.shape import VOCAB, fast_dtype, stretched_146m
from runtime.clients.channels import Channels
from runtime.clients.peers import GrpcPeers
from runtime.config import Config, EngineConfig, GatewayConfig, MeshConfig, ModelConfig, TimingConfig, WorkerConfig
from runtime.domain.messages import Handoff, PrefillCandidate
from runtime.errors import StartError
from runtime.ids import BootId, GatewayId, WorkerId
from runtime.kv.transport.timing.plan import Listening
from runtime.kv.transport.timing.senders import Senders
from runtime.mesh.listening import free_ports
from runtime.mirroring import MirrorConfig
from runtime.model.checkpoint import open_checkpoint
from runtime.model.spec import sized_spec
from runtime.tiering import KvKeepingConfig
from runtime.wire.handoff import unpack_handoff

_HISTORY, _QUICK_HISTORY = 8192, 1024
_RECEIVER = "runtime.kv.transport.timing.receiver"
_BEFORE, _TOKENS = 16, 32
_PAGE_BYTES, _MOVED_PAGES, _ROUNDS = 1 << 20, 128, 3
_WARMINGS, _WARMING_TOKENS = 2, 1024
_SEEN_S = 60.0
_ANSWER_S = 300.0
_MODEL = "baton-bench"

_Say = Callable[[str], None]


@dataclass(slots=True)
class _Mesh:
    """Processes that can be killed. `grpc` is the gateway's."""

    config: Config
    controller: str
    stack: ExitStack
    grpc: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def start(self, worker: str) -> None:
        told = self.stack.enter_context(host(self.config, "worker", self.controller, worker))
        self.pids[worker], self.addresses[worker] = int(told["pid"]), told["grpc"]

    def signal(self, worker: str, number: signal.Signals) -> None:
        os.kill(self.pids[worker], number)


@dataclass(frozen=True, slots=True)
class _Recovery:
    """What a client saw, and how the worker that took over came by its KV."""

    name: str
    pause_s: float
    step_s: float
    handoff: Handoff

    @property
    def own_s(self) -> float:
        """From the start of the attempt at the worker that took over to its first step."""
        return self.handoff.wait_ms / 1000

    @property
    def detect_s(self) -> float:
        """Until another worker was told: what of the pause is neither its wait nor its first step."""
        return max(self.pause_s - self.own_s - self.step_s, 0.0)


def recovery(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter context; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the pause of a stream whose decode worker is killed or stopped, and goes on from its mirror's pages.

    Over the floor: the time until the successor runs again, to that in which shared memory alone moves these bytes
    between two processes. The speedup is to computing them anew in the same run.
    """
    machine, history = Machine.here(), _QUICK_HISTORY if quick else _HISTORY
    with (
        Console(stderr=True).status("how fast the path is alone") as status,
        TemporaryDirectory(prefix="baton-bench-") as folder,
    ):
        rate = _rate()
        with _mesh(Path(folder), history) as mesh:
            recovered = uvloop.run(_recover(mesh, history, status.update))
    tell(_report(machine, history, rate, recovered), as_json=as_json)


def _rate() -> float:
    """Bytes a second through shared memory, with both checksums."""
    arguments = {"page_bytes": _PAGE_BYTES, "pages": _MOVED_PAGES}
    with hosted(_RECEIVER, arguments, start_s=_SEEN_S) as listening:
        return uvloop.run(_moved(Listening(**listening)))


async def _moved(there: Listening) -> float:
    senders, seconds = Senders(_PAGE_BYTES, there, None), list[float]()
    try:
        for _ in range(_ROUNDS + 1):
            began = time.perf_counter()
            await senders.moves["shm"](_MOVED_PAGES)
            seconds.append(time.perf_counter() - began)
    finally:
        await senders.close()
    return _PAGE_BYTES * _MOVED_PAGES / statistics.median(seconds[1:])


async def _recover(mesh: _Mesh, history: int, say: _Say) -> list[_Recovery]:
    source = random.SystemRandom()
    prompt = [source.randrange(VOCAB) for _ in range(history)]
    async with AsyncClient(mesh.grpc) as client:
        say(f"computing a context of {history:,} tokens")
        await client.complete(_MODEL, prompt, timeout=_ANSWER_S, max_tokens=4, temperature=0.0, ignore_eos=True)
        found = []
        for number, (name, what) in enumerate((("kill", signal.SIGKILL), ("stop", signal.SIGSTOP))):
            say(f"from the mirror, after a {name}")
            await _joins(mesh, client, f"decode-{number + 1}")
            found.append(await _recovered(mesh, client, prompt, f"decode-{number}", what, name))
            if what is signal.SIGSTOP:
                mesh.signal(f"decode-{number}", signal.SIGKILL)
        say("computing it anew")
        await _joins(mesh, client, "decode-3")
        mesh.signal("prefill-0", signal.SIGKILL)
        found.append(await _recovered(mesh, client, prompt, "decode-2", signal.SIGKILL, "without a mirror"))
    return found


async def _joins(mesh: _Mesh, client: AsyncClient, worker: str) -> None:
    """Start it, let it take pages as one that has served for a while, and wait until the gateway knows of it."""
    await asyncio.to_thread(mesh.start, worker)
    prefill = PrefillCandidate(WorkerId("prefill-0"), BootId("any"), mesh.addresses["prefill-0"])
    async with (
        Channels() as channels,
        GrpcPeers(channels, GatewayId("bench")).decode(mesh.addresses[worker]).attach() as stream,
        asyncio.TaskGroup() as group,
    ):
        probe = Probe(stream, VOCAB)
        running = group.create_task(probe.run())
        await probe.wait_ready()
        for _ in range(_WARMINGS):
            await probe.measure(_WARMING_TOKENS, (prefill,))
        running.cancel()
    async with asyncio.timeout(_SEEN_S):
        while worker not in [each.id for each in (await client.topology(timeout=_SEEN_S)).workers]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        # The directory is told what the last answer left, and leases of the dead run out.
        await asyncio.sleep(2.0)


async def _recovered(
    mesh: _Mesh, client: AsyncClient, prompt: list[int], victim: str, what: signal.Signals, name: str
) -> _Recovery:
    times, events = list[float](), list[Event]()
    async with client.generate(
        _MODEL, prompt, timeout=_ANSWER_S, max_tokens=_BEFORE + _TOKENS, temperature=0.0, ignore_eos=True
    ) as stream:
        async for event in stream:
            times.append(time.perf_counter())
            events.append(event)
            if len(times) == _BEFORE:
                mesh.signal(victim, what)
    final = whole(events).final
    if final.attempts != 2:
        raise StartError(f"{name}: the answer was not on {victim}, or took more than one other worker")
    steps = [later - earlier for earlier, later in pairwise(times)]
    return _Recovery(name, max(steps), statistics.median(steps), unpack_handoff(final.handoff))


def _report(machine: Machine, history: int, rate: float, recovered: list[_Recovery]) -> Report:
    kill, stop, anew = recovered
    spec_bytes = _token_bytes()
    for each in (kill, stop):
        if each.handoff.restored_tokens < history // 2:
            raise StartError(f"after a {each.name} only {each.handoff.restored_tokens} tokens were restored")
    floor_s = kill.handoff.restored_tokens * spec_bytes / rate
    ratios = {
        f"restore_over_floor_{history}": round(kill.own_s / floor_s, 3),
        f"restore_speedup_{history}": round((anew.pause_s - kill.detect_s) / (kill.pause_s - kill.detect_s), 2),
        "detect_s_kill": round(kill.detect_s, 3),
        "detect_s_stop": round(stop.detect_s, 3),
    }
    rows: list[dict[str, Cell]] = [
        {
            "decode_worker": each.name,
            "tokens": history,
            "pause_ms": round(each.pause_s * 1000, 1),
            "detect_ms": round(each.detect_s * 1000, 1),
            "until_it_runs_ms": round(each.own_s * 1000, 1),
            "step_ms": round(each.step_s * 1000, 1),
            "restored_tokens": each.handoff.restored_tokens,
            "restore_ms": round(each.handoff.restore_ms, 1),
            "floor_ms": round(each.handoff.restored_tokens * spec_bytes / rate * 1000, 1),
        }
        for each in recovered
    ]
    wanted = {
        f"restore_over_floor_{_HISTORY}": Bound(1.5),
        "detect_s_kill": Bound(0.5),
        "detect_s_stop": Bound(2.0),
    }
    timing = _timing()
    remarks = (
        f"146 M parameters in {fast_dtype()}, one thread a worker. Shared memory alone moves {rate / 1e9:.2f} GB/s "
        "with both checksums, out of no pool and into none.",
        "Detection is what of the pause is neither the successor's wait for its KV nor a step. A stream that is silent "
        f"for {timing.silence_s} s counts as broken here, and connecting takes {timing.attach_s} s at the most.",
    )
    return Report("recovery", machine, tuple(rows), ratios, wanted, remarks)


def _token_bytes() -> int:
    with TemporaryDirectory(prefix="baton-bench-") as folder:
        model = stretched_146m(Path(folder) / "model", 2 * _HISTORY)
        spec = sized_spec(open_checkpoint(model), name=_MODEL, dtype=fast_dtype(), page_tokens=32)
    return spec.token_bytes


def _timing() -> TimingConfig:
    return TimingConfig(heartbeat_s=0.25, silence_s=1.0, attach_s=0.3, lease_s=1.5)


@contextmanager
def _mesh(folder: Path, history: int) -> Iterator[_Mesh]:
    """With one decode worker, which is to die first."""
    engine, (http_port, grpc_port) = EngineConfig(), free_ports(2)
    config = Config(
        mesh=MeshConfig(name="bench", state=folder),
        model=ModelConfig(path=str(stretched_146m(folder / "model", 2 * _HISTORY)), name=_MODEL, dtype=fast_dtype()),
        engine=engine.model_copy(update={"pages": 2 * history // engine.page_tokens + 128, "max_running": 2}),
        workers=(WorkerConfig(name="prefill", role="prefill"), WorkerConfig(name="decode", role="decode", count=4)),
        gateway=GatewayConfig(http_port=http_port, grpc_port=grpc_port),
        timing=_timing(),
        kv=KvKeepingConfig(mirror=MirrorConfig(copies=1)),
    )
    with ExitStack() as stack:
        controller = stack.enter_context(host(config, "controller"))["grpc"]
        mesh = _Mesh(config, controller, stack)
        for worker in ("prefill-0", "decode-0"):
            mesh.start(worker)
        mesh.grpc = stack.enter_context(host(config, "gateway", controller))["grpc"]
        try:
            yield mesh
        finally:
            for pid in mesh.pids.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
