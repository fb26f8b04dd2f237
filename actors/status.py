"""`baton status`: who serves in a mesh and how busy they are, as its gateway says."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from actors.state import Record, StateFolder, describe
from batonmesh import BatonError, Client, Credentials
from runtime.cli.talk.connecting import shown
from runtime.cli.talk.wording import bytes_in_words
from runtime.config import load_config
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.tiers import TierReport
from runtime.errors import StartError
from runtime.mesh.plan import planned_workers
from runtime.mesh.security import own_credentials
from runtime.wire.mirroring import unpack_mirror
from runtime.wire.tiers import unpack_tiers

_ANSWER_S = 5.0
_Row = dict[str, Any]
_COLUMNS = {
    "worker": "{worker}",
    "role": "{role}",
    "device": "{device}",
    "running": "{running}",
    "waiting": "{waiting}",
    "pages": "{pages_used}/{pages}",
    "cached": "{pages_cached}",
    "address": "{address}",
    "boot": "{boot}",
}
_WORDS = ("worker", "role", "device", "address", "boot")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The mesh's configuration; else the local mesh.")
]


def status(
    config: ConfigFile = None,
    target: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask this gateway, wherever it runs, and not our own mesh.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the workers of a running mesh: roles, devices, load, pages, generations."""
    record, missing, credentials = None, set[str](), None
    if target is None:
        settings = load_config(config)
        record = running_mesh(StateFolder(settings.state), settings.mesh.name)
        target, missing, credentials = record.grpc, set(planned_workers(settings)), own_credentials(settings)
    rows, refused = _ask(target, credentials or shown())
    missing -= {str(row["worker"]) for row in rows}
    if as_json:
        typer.echo(json.dumps({"target": target, "workers": rows, "missing": sorted(missing), "refused": refused}))
        return
    console = Console()
    if record is not None:
        console.print(f"[bold]{record.mesh}[/bold]  {describe(record)}", highlight=False, soft_wrap=True)
    console.print(_table(rows))
    for line in chain(_paths(rows), _tiers(rows), _mirrors(rows)):
        console.print(line, highlight=False, soft_wrap=True)
    for worker, reason in refused.items():
        console.print(Text(f"{worker} was refused: {reason}", style="yellow"), soft_wrap=True)
    for worker in sorted(missing - refused.keys()):
        console.print(f"[yellow]{worker} does not serve[/yellow]; its log is in {record.log if record else ''}")


def running_mesh(folder: StateFolder, name: str) -> Record:
    """Raises `StartError` when it does not run, or is not ready."""
    record = folder.read() if folder.holder() is not None else None
    if record is None:
        raise StartError(f"no mesh named {name} is running; `baton up` starts one, and --config asks for another")
    if not record.ready:
        raise StartError(f"the mesh named {name} is not ready: {describe(record)}")
    return record


def _ask(target: str, credentials: Credentials) -> tuple[list[_Row], dict[str, str]]:
    """A row for every worker that serves, and why others were refused."""
    try:
        with Client(target, credentials) as client:
            view = client.topology(timeout=_ANSWER_S)
    except BatonError as error:
        raise StartError(f"the gateway at {target} does not answer: {error}") from error
    names = {worker.boot: worker.id for worker in view.workers}
    rows = [
        {
            "worker": worker.id,
            "role": worker.role,
            "draining": worker.draining,
            "model": worker.model,
            "device": worker.device,
            "address": worker.address,
            "boot": worker.boot,
            "running": worker.load.running,
            "waiting": worker.load.waiting + worker.load.awaiting,
            "prefill_tokens": worker.load.prefill_tokens,
            "pages": pages.free + pages.landing + pages.owned + pages.cached,
            "pages_used": pages.landing + pages.owned,
            "pages_cached": pages.cached,
            "pool_tokens": worker.page_tokens * (pages.free + pages.landing + pages.owned + pages.cached),
            "paths": [
                {
                    "to": names.get(path.boot, path.boot),
                    "transport": path.transport,
                    "reason": path.reason,
                    "transfers": path.transfers,
                    "bytes": path.bytes,
                }
                for path in worker.traffic.paths
            ],
            "refused": dict(worker.traffic.refused),
            "prefill_ms": worker.traffic.prefill_ms,
            "exposed_ms": worker.traffic.exposed_ms,
            "tiers": [_tier(tier) for tier in unpack_tiers(worker.tiers)],
            "mirror": asdict(unpack_mirror(worker.mirror)) if worker.HasField("mirror") else None,
        }
        for worker in sorted(view.workers, key=lambda worker: (worker.role != PREFILL, worker.id))
        for pages in [worker.load.pages]
    ]
    return rows, {each.worker: each.reason for each in view.refused}


def _tier(report: TierReport) -> _Row:
    return asdict(report) | {"tier": report.tier.value, "failures": dict(report.failures)}


def _paths(rows: list[_Row]) -> Iterator[str]:
    """How pages went from whom to whom, and what was refused, a line each; nothing of workers that are gone."""
    here = {row["worker"] for row in rows}
    for row in rows:
        if row["exposed_ms"]:
            share = row["exposed_ms"] / max(row["prefill_ms"], row["exposed_ms"])
            told = f"{row['exposed_ms']:,.0f} ms of its pushing, {share:.1%} of its prefills' time, went on after them"
            yield f"[dim]exposed[/dim]  {row['worker']}  {told}"
        for path in row["paths"]:
            if path["to"] in here:
                moved = f"{path['transfers']:,} transfers, {bytes_in_words(path['bytes'])}"
                told = f"{row['worker']} -> {path['to']}  {path['transport']}  {moved}  ({path['reason']})"
                yield f"[dim]pages[/dim]  {escape(told)}"
        for reason, count in row["refused"].items():
            yield f"[yellow]{row['worker']} refused {count:,}[/yellow] frames or messages: {escape(reason)}"


def _tiers(rows: list[_Row]) -> Iterator[str]:
    """What is kept behind whose pool, a line each, and what was given up of it."""
    for row in rows:
        for tier in row["tiers"]:
            holds = (
                f"{tier['pages']:,} pages, {bytes_in_words(tier['bytes'])} of {bytes_in_words(tier['capacity_bytes'])}"
            )
            told = f"{holds}; {tier['written_pages']:,} written, {tier['read_pages']:,} read  ({tier['place']})"
            yield f"[dim]tier[/dim]   {row['worker']} {tier['tier']}  {escape(told)}"
            for reason, count in tier["failures"].items():
                where = f"{tier['tier']}, {reason}"
                yield f"[yellow]{row['worker']} computed instead, {count:,} times[/yellow]: {escape(where)}"
            if tier["trouble"]:
                yield f"[yellow]{row['worker']} leaves {tier['tier']} alone for now[/yellow]: {escape(tier['trouble'])}"


def _mirrors(rows: list[_Row]) -> Iterator[str]:
    """How many of whose pages others were given copies of, a line each, and what was left out."""
    for row in rows:
        mirror = row["mirror"]
        if row["role"] != DECODE or mirror is None:
            continue
        sent = f"{mirror['pages']:,} pages with a mirror, {bytes_in_words(mirror['bytes'])} sent for them"
        told = f"{sent}; {mirror['waiting']:,} wait, {mirror['dropped']:,} were dropped"
        yield f"[dim]mirror[/dim] {row['worker']}  {told}"
        if mirror["failures"]:
            yield f"[yellow]{row['worker']} was let down by its mirrors, {mirror['failures']:,} times[/yellow]"


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cells.format_map(row)) for cells in _COLUMNS.values()))
    return table
