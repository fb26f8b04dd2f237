"""`baton bench session`: what it costs to keep sessions, and what that adds to a token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from runtime.cli.bench import storing
from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.config import Config, MeshConfig, SessionsConfig
from runtime.mesh.sessions import session_database
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.transaction import Database

_CONCURRENT = (1, 16, 64, 256)
_STREAMS, _EVERY_S = 64, 0.02
_SHORT, _LONG = 10, 10_000
_MILLION = 1_000_000
_WANTED = {
    "emit_p99_over_commit_p99": Bound(2),
    "append_10000_over_10": Bound(1.2),
    "get_ms_p99_1m": Bound(5),
    "list_ms_p99_1m": Bound(5),
    "idle_session_bytes": Bound(2048),
}


@dataclass(frozen=True, slots=True)
class _Pace:
    """`seconds` of each cell; `tokens` of each stream; `rounds` of appends; `sessions` that a store is filled with;
    `idle` ones that a gateway has had."""

    seconds: float
    tokens: int
    rounds: int
    sessions: int
    idle: int


_FULL = _Pace(seconds=5, tokens=200, rounds=1000, sessions=_MILLION, idle=10_000)
_QUICK = _Pace(seconds=1, tokens=50, rounds=200, sessions=1000, idle=1000)


def session(
    postgres: Annotated[
        str | None,
        typer.Option(metavar="DSN", help="A PostgreSQL database to use instead of SQLite; it is written to."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where SQLite keeps its file, for the disk that counts."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short, and among few sessions; ends within a minute.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the session store: turns a second, commits, long histories, many sessions, and a token's way through."""
    machine = Machine.here()
    pace = _QUICK if quick else _FULL
    rows, ratios = asyncio.run(_measure(pace, postgres, folder))
    remarks = [
        "A commit is one write that is durable: a turn opened, a token appended, a turn ended.",
        f"A token's way, over {_STREAMS} streams: from its arrival at the gateway to its emission, once it is durable.",
    ]
    tell(Report("session", machine, rows, ratios, _WANTED, tuple(remarks)), as_json=as_json)


async def _measure(
    pace: _Pace, postgres: str | None, folder: Path | None
) -> tuple[tuple[dict[str, Cell], ...], dict[str, float]]:
    rows: list[dict[str, Cell]] = []
    with Console(stderr=True).status("") as status:
        async with _store(postgres, folder) as (store, database):
            for concurrent in _CONCURRENT:
                status.update(f"{concurrent} sessions at once")
                commits = await storing.turns(store, concurrent, pace.seconds)
                rows.append(
                    {
                        "store": "sqlite" if postgres is None else "postgresql",
                        "sessions": concurrent,
                        "turns_per_s": round(commits.turns / commits.seconds, 1),
                        "commits_per_s": round(len(commits.milliseconds) / commits.seconds, 1),
                        "commit_ms_p50": round(commits.percentile(0.5), 3),
                        "commit_ms_p99": round(commits.percentile(0.99), 3),
                    }
                )
            status.update(f"{_STREAMS} streams")
            emitted, written = await storing.emission(store, _STREAMS, pace.tokens, _EVERY_S)
            status.update("appends to a short and to a long history")
            short, long = await storing.append_after(store, _SHORT, _LONG, pace.rounds)
            status.update(f"{pace.idle:,} sessions that do nothing")
            idle = await storing.idle(store, pace.idle)
            status.update(f"looking up among {pace.sessions:,} sessions")
            some = await storing.fill(database, pace.sessions)
            got, listed = await storing.look_up(store, some, pace.rounds)
    commit_p99, emit_p99 = storing.percentile(written, 0.99), storing.percentile(emitted, 0.99)
    ratios = {
        "emit_ms_p50": round(storing.percentile(emitted, 0.5), 3),
        "emit_ms_p99": round(emit_p99, 3),
        # A millisecond is the event loop's, whatever the store is.
        "emit_p99_over_commit_p99": round(max(emit_p99 - 1, 0) / commit_p99, 3),
        "append_10000_over_10": round(long / short, 3),
        "idle_session_bytes": round(idle, 1),
    }
    many = "1m" if pace.sessions == _MILLION else str(pace.sessions)
    return tuple(rows), ratios | {f"get_ms_p99_{many}": round(got, 3), f"list_ms_p99_{many}": round(listed, 3)}


@asynccontextmanager
async def _store(postgres: str | None, folder: Path | None) -> AsyncIterator[tuple[SessionStore, Database]]:
    with TemporaryDirectory(prefix="baton-bench-", dir=folder) as state:
        kept = SessionsConfig(store=postgres or "sqlite")
        config = Config(mesh=MeshConfig(name="bench", state=Path(state)), sessions=kept)
        database, bells = session_database(config)
        try:
            await database.open()
            yield SqlSessionStore(database, bells), database
        finally:
            await database.close()
