"""`baton bench gateway`: how many requests a second a gateway carries, and what it adds to the first token.

The engine is simulated and takes no time, each request asks for 16 tokens, and each token is an event.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from rich.console import Console

from runtime.cli.bench.host import host
from runtime.cli.bench.hosted import call
from runtime.cli.bench.load.closed import Measured, Plan
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.face import Addresses, Surroundings
from runtime.config import (
    Config,
    EngineConfig,
    GatewayConfig,
    MeshConfig,
    ModelConfig,
    RayConfig,
    SimulatedConfig,
    WorkerConfig,
)
from runtime.errors import StartError, Unavailable
from runtime.mesh.listening import free_ports
from runtime.mesh.plan import planned_workers

_LOAD = "runtime.cli.bench.load.closed"
_MODEL = "simulated"
_TOKENS = 16
_CLIENTS = (1, 32, 128)
_SLACK_S = 30.0
_WANTED = {
    "http_requests_per_s_32": Bound(164, at_least=True),
    "http_requests_per_s_128": Bound(341, at_least=True),
    "grpc_requests_per_s_32": Bound(328, at_least=True),
    "grpc_requests_per_s_128": Bound(682, at_least=True),
}


@dataclass(frozen=True, slots=True)
class _Pace:
    """`rounds` measure every cell once each; the median counts."""

    warmup_s: float
    seconds: float
    rounds: int


_FULL = _Pace(warmup_s=2, seconds=8, rounds=3)
_QUICK = _Pace(warmup_s=1, seconds=3, rounds=1)


def gateway(
    context: typer.Context,
    target: Annotated[
        str | None, typer.Option(metavar="URL", help="Any OpenAI-compatible server instead of a mesh of our own.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What to ask for at --target; by default its first model.")] = None,
    ray: Annotated[bool, typer.Option(help="Host the mesh as `baton up` does, or in plain processes.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="One short round; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load a gateway over HTTP and gRPC: requests and tokens per second, and the time to the first token.

    The load comes from 1, 32 and 128 clients that each send the next request when the last is answered.
    """
    machine = Machine.here()
    pace = _QUICK if quick else _FULL
    if target is not None:
        name = model or _first_model(target)
        cells = [Plan("http", target, name, clients, _TOKENS, pace.warmup_s, pace.seconds) for clients in _CLIENTS]
        measured = _measure(cells, pace)
    else:
        surroundings = context.find_object(Surroundings) or Surroundings()
        with _own_mesh(surroundings, ray=ray) as addresses:
            cells = [
                Plan(protocol, getattr(addresses, protocol), _MODEL, clients, _TOKENS, pace.warmup_s, pace.seconds)
                for protocol, clients in product(("http", "grpc"), _CLIENTS)
            ]
            measured = _measure(cells, pace)
    report = _report(measured, machine, target)
    tell(report, as_json=as_json)


def _measure(cells: list[Plan], pace: _Pace) -> list[tuple[Plan, Measured]]:
    """Round by round, so that a noisy minute does not fall on one cell alone."""
    results: dict[Plan, list[Measured]] = {cell: [] for cell in cells}
    with Console(stderr=True).status("") as status:
        for number, cell in product(range(pace.rounds), cells):
            status.update(f"round {number + 1} of {pace.rounds}: {cell.clients} clients over {cell.protocol}")
            limit = cell.warmup_s + cell.seconds + _SLACK_S
            results[cell].append(Measured(**call(_LOAD, asdict(cell), timeout_s=limit)))
    return [(cell, _median(rounds)) for cell, rounds in results.items()]


def _median(rounds: list[Measured]) -> Measured:
    """The round with the median rate; the lower one of two."""
    ordered = sorted(rounds, key=lambda measured: measured.requests / measured.seconds)
    return ordered[(len(ordered) - 1) // 2]


def _report(measured: list[tuple[Plan, Measured]], machine: Machine, target: str | None) -> Report:
    rows = tuple(_row(plan, result) for plan, result in measured)
    ratios = {
        f"{plan.protocol}_requests_per_s_{plan.clients}": round(result.requests / result.seconds, 1)
        for plan, result in measured
        if plan.clients > 1
    }
    remarks = [f"{plan.clients} over {plan.protocol}: {result.failure}" for plan, result in measured if result.failures]
    if target is None:
        remarks.append("The engine takes no time, so all of the TTFT is what the mesh adds, waiting in line included.")
    return Report("gateway", machine, rows, ratios, _WANTED if target is None else {}, tuple(remarks))


def _row(plan: Plan, result: Measured) -> dict[str, Cell]:
    return {
        "over": plan.protocol,
        "clients": plan.clients,
        "requests_per_s": round(result.requests / result.seconds, 1),
        "tokens_per_s": round(result.requests * _TOKENS / result.seconds),
        "events_per_request": round(result.events / max(result.requests, 1), 1),
        "added_ttft_ms_p50": round(result.first_ms_p50, 2),
        "added_ttft_ms_p99": round(result.first_ms_p99, 2),
        "whole_ms_p50": round(result.whole_ms_p50, 2),
        "failures": result.failures,
    }


@contextmanager
def _own_mesh(surroundings: Surroundings, *, ray: bool) -> Iterator[Addresses]:
    with (
        TemporaryDirectory(prefix="baton-bench-") as folder,
        _started(_config(Path(folder)), surroundings, ray) as mesh,
    ):
        yield mesh


def _started(config: Config, surroundings: Surroundings, ray: bool) -> AbstractContextManager[Addresses]:
    if ray and surroundings.start_mesh is None:
        raise StartError("there is no Ray here to host a mesh: use --no-ray")
    if ray and surroundings.start_mesh is not None:
        return surroundings.start_mesh(config)
    return _without_ray(config)


@contextmanager
def _without_ray(config: Config) -> Iterator[Addresses]:
    """A process for each part, as Ray would have it."""
    with ExitStack() as stack:
        controller = stack.enter_context(host(config, "controller"))["grpc"]
        for worker in planned_workers(config):
            stack.enter_context(host(config, "worker", controller, worker))
        listening = stack.enter_context(host(config, "gateway", controller))
        yield Addresses(http=listening["http"], grpc=listening["grpc"])


def _config(state: Path) -> Config:
    http_port, grpc_port = free_ports(2)
    return Config(
        mesh=MeshConfig(name="bench", state=state),
        model=ModelConfig(name=_MODEL, simulated=SimulatedConfig(max_tokens=4096)),
        engine=EngineConfig(pages=16_384, max_running=256),
        workers=(WorkerConfig(name="decode", role="decode"),),
        gateway=GatewayConfig(http_port=http_port, grpc_port=grpc_port),
        ray=RayConfig(dashboard_port=0),
    )


def _first_model(target: str) -> str:
    root = target.rstrip("/").removesuffix("/v1")
    try:
        answer = httpx.get(f"{root}/v1/models", timeout=10)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise Unavailable(
            f"{root}/v1/models does not name a model: {error}; name one with --model", field="target"
        ) from error
