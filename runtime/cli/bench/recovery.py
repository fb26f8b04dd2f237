"""`baton bench recovery`: the pause that a client sees when the decode worker of its answer dies, or stops.

A mesh of processes, a gateway before them. Every answer is to a prompt that nobody has seen, so that whoever takes over
has none of it: twice the mirror does, and what computing it anew would take is timed on the worker that is left.
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
from runtime.cli.bench.probe import probing
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.shape import VOCAB, fast_dtype, stretched_146m
from runtime.config import Config, EngineConfig, GatewayConfig, MeshConfig, ModelConfig, TimingConfig, WorkerConfig
from runtime.domain.messages import Handoff, MirrorReport, PrefillCandidate, Worker
from runtime.domain.routing import DECODE
from runtime.errors import StartError
from runtime.ids import BootId, WorkerId
from runtime.kv.transport.timing.plan import Listening, read_listening
from runtime.kv.transport.timing.senders import Senders
from runtime.mesh.listening import free_ports
from runtime.mirroring import MirrorConfig
from runtime.model.checkpoint import open_checkpoint
from runtime.model.spec import sized_spec
from runtime.tiering import KvKeepingConfig
from runtime.wire.handoff import unpack_handoff
from runtime.wire.mesh import unpack_view

_HISTORY, _QUICK_HISTORY = 8192, 1024
_RECEIVER = "runtime.kv.transport.timing.receiver"
_PREFILL, _DECODE = "prefill-0", ("decode-0", "decode-1", "decode-2")
# A worker tells some times a second of its copies, and must not have ended its answer by then.
_ANSWER_TOKENS = 128
_PAGE_BYTES, _MOVED_PAGES, _ROUNDS = 1 << 20, 128, 3
_SPARE_PAGES = 32
_WARMING_TOKENS = 256
_SEEN_S = 60.0
_LOOK_S = 0.05
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

    @property
    def page_tokens(self) -> int:
        return self.config.engine.page_tokens

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


@dataclass(frozen=True, slots=True)
class _Found:
    """`computed_s` is the time to the first token of a prompt as long, computed by one decode worker."""

    kill: _Recovery
    stop: _Recovery
    computed_s: float


def recovery(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter context; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the pause of a stream whose decode worker is killed or stopped, and goes on from its mirror's pages.

    Over the floor: the time until the successor runs again, to that in which shared memory alone moves these bytes
    between two processes. The speedup is to computing them anew in the same run.

    All of it takes some minutes: four times 8,192 tokens are computed by one thread.
    """
    machine, history = Machine.here(), _QUICK_HISTORY if quick else _HISTORY
    with (
        Console(stderr=True).status("how fast the path is alone") as status,
        TemporaryDirectory(prefix="baton-bench-") as folder,
    ):
        rate = _rate()
        with _mesh(Path(folder), history) as mesh:
            found = uvloop.run(_recover(mesh, history, status.update))
    tell(_report(machine, history, rate, found), as_json=as_json)


def _rate() -> float:
    """Bytes a second through shared memory, with both checksums."""
    arguments = {"page_bytes": _PAGE_BYTES, "pages": _MOVED_PAGES}
    with hosted(_RECEIVER, arguments, start_s=_SEEN_S) as listening:
        return uvloop.run(_moved(read_listening(listening)))


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


async def _recover(mesh: _Mesh, history: int, say: _Say) -> _Found:
    living = set(_DECODE)

    async def recovered(name: str, number: signal.Signals) -> _Recovery:
        held = await _settled(client, living)
        say(f"an answer after {history:,} tokens; then {name} its worker")
        recovery, victim = await _recovered(mesh, client, history, held, number, name)
        living.remove(victim)
        mesh.signal(victim, signal.SIGKILL)
        return recovery

    async with AsyncClient(mesh.grpc) as client:
        await _warm(mesh, history, say)
        kill, stop = await recovered("kill", signal.SIGKILL), await recovered("stop", signal.SIGSTOP)
        await _settled(client, living)
    say("computing it anew")
    async with probing(mesh.addresses[living.pop()], VOCAB) as probe:
        anew = await probe.measure(history, ())
    return _Found(kill, stop, anew.first_s)


async def _warm(mesh: _Mesh, history: int, say: _Say) -> None:
    """Have each take pages, so many that its pool is that of one who has served for a while."""
    candidates = (PrefillCandidate(WorkerId(_PREFILL), BootId("any"), mesh.addresses[_PREFILL]),)
    prompt = _fresh(history)
    for worker in _DECODE:
        say(f"warming up {worker}")
        async with probing(mesh.addresses[worker], VOCAB) as probe:
            await probe.measure_prompt(prompt, candidates)
            await probe.measure(_WARMING_TOKENS, candidates)


def _fresh(tokens: int) -> tuple[int, ...]:
    source = random.SystemRandom()
    return tuple(source.randrange(VOCAB) for _ in range(tokens))


async def _settled(client: AsyncClient, living: set[str]) -> dict[str, int]:
    """Wait until the gateway knows of these decode workers and no others, and none has anything to do. How many of the
    pages of each have come to a mirror until then."""
    async with asyncio.timeout(_SEEN_S):
        while True:
            workers = await _decoding(client)
            if {worker.id for worker in workers} == living and not any(map(_at_work, workers)):
                return {worker.id: _mirrored(worker).pages for worker in workers}
            await asyncio.sleep(_LOOK_S)


async def _decoding(client: AsyncClient) -> list[Worker]:
    view = unpack_view(await client.topology(timeout=_SEEN_S))
    return [worker for worker in view.workers if worker.role == DECODE]


def _mirrored(worker: Worker) -> MirrorReport:
    assert worker.mirror is not None, "there is to be a copy"
    return worker.mirror


def _at_work(worker: Worker) -> bool:
    load = worker.load
    return load is None or any((load.running, load.waiting, load.awaiting, _mirrored(worker).waiting))


async def _recovered(
    mesh: _Mesh, client: AsyncClient, history: int, held: dict[str, int], number: signal.Signals, name: str
) -> tuple[_Recovery, str]:
    """Signal the worker of an answer once its mirror has the prompt; also which worker it was."""
    times, events = list[float](), list[Event]()
    async with (
        asyncio.TaskGroup() as group,
        client.generate(
            _MODEL, _fresh(history), timeout=_ANSWER_S, max_tokens=_ANSWER_TOKENS, temperature=0.0, ignore_eos=True
        ) as stream,
    ):
        signalled = group.create_task(_signalled(mesh, client, held, history // mesh.page_tokens, number))
        async for event in stream:
            times.append(time.perf_counter())
            events.append(event)
        signalled.cancel()
    if signalled.cancelled():
        raise StartError(f"{name}: the answer ended before its mirror had its prompt")
    victim, final = signalled.result(), whole(events).final
    if final.attempts != 2:
        raise StartError(f"{name}: {victim} did not run the answer, or it took more than one other")
    steps = [later - earlier for earlier, later in pairwise(times)]
    recovery = _Recovery(name, max(steps), statistics.median(steps), unpack_handoff(final.handoff))
    if recovery.handoff.restored_tokens < history:
        raise StartError(f"{name}: only {recovery.handoff.restored_tokens} of {history} tokens were restored")
    return recovery, victim


async def _signalled(mesh: _Mesh, client: AsyncClient, held: dict[str, int], pages: int, number: signal.Signals) -> str:
    """Only the worker that runs the answer has so many more pages at a mirror than before."""
    while True:
        for worker in await _decoding(client):
            if _mirrored(worker).pages >= held[worker.id] + pages:
                mesh.signal(worker.id, number)
                return worker.id
        await asyncio.sleep(_LOOK_S)


def _report(machine: Machine, history: int, rate: float, found: _Found) -> Report:
    kill, token_bytes = found.kill, _token_bytes()
    floor_s = kill.handoff.restored_tokens * token_bytes / rate
    ratios = {
        f"restore_over_floor_{history}": round(kill.own_s / floor_s, 3),
        f"restore_speedup_{history}": round(found.computed_s / (kill.own_s + kill.step_s), 2),
        "detect_s_kill": round(kill.detect_s, 3),
        "detect_s_stop": round(found.stop.detect_s, 3),
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
            "floor_ms": round(each.handoff.restored_tokens * token_bytes / rate * 1000, 1),
            "computed_ms": round(found.computed_s * 1000, 1),
        }
        for each in (kill, found.stop)
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
        "'computed ms' is a decode worker's time to the first token of as long a prompt that nobody has.",
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
    engine, (http_port, grpc_port) = EngineConfig(), free_ports(2)
    config = Config(
        mesh=MeshConfig(name="bench", state=folder),
        model=ModelConfig(path=str(stretched_146m(folder / "model", 2 * _HISTORY)), name=_MODEL, dtype=fast_dtype()),
        # So few that what comes takes the places of what there was.
        engine=engine.model_copy(update={"pages": history // engine.page_tokens + _SPARE_PAGES, "max_running": 2}),
        workers=(
            WorkerConfig(name="prefill", role="prefill"),
            WorkerConfig(name="decode", role="decode", count=len(_DECODE)),
        ),
        gateway=GatewayConfig(http_port=http_port, grpc_port=grpc_port),
        timing=_timing(),
        kv=KvKeepingConfig(mirror=MirrorConfig(copies=1)),
    )
    with ExitStack() as stack:
        controller = stack.enter_context(host(config, "controller"))["grpc"]
        mesh = _Mesh(config, controller, stack)
        for worker in (_PREFILL, *_DECODE):
            mesh.start(worker)
        mesh.grpc = stack.enter_context(host(config, "gateway", controller))["grpc"]
        try:
            yield mesh
        finally:
            for pid in mesh.pids.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
