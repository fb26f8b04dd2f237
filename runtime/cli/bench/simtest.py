"""`baton bench simtest`: how many schedules of a whole simulated mesh two cores play in a minute."""

import logging
import time
from typing import Annotated

import typer
from rich.console import Console

from runtime.cli.bench.report import Bound, Machine, Report, tell
from runtime.mesh.simulation import explore

_CORES = 2
_FULL, _QUICK = 1500, 300
_WANTED = {"schedules_per_min": Bound(500, at_least=True)}


def simtest(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer schedules; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play schedules of a whole mesh in virtual time on two cores, starting the processes included."""
    machine, seeds = Machine.here(), _QUICK if quick else _FULL
    logging.getLogger("runtime").setLevel(logging.ERROR)
    began = time.perf_counter()
    with Console(stderr=True).status(f"playing {seeds} schedules"):
        found = explore(range(seeds), processes=_CORES)
    seconds = time.perf_counter() - began
    rate = round(60 * seeds / seconds, 1)
    row = {"schedules": seeds, "seconds": round(seconds, 1), "violations": len(found.failures)}
    remarks = [f"seed {failure.seed}: {failure.messages[0]}" for failure in found.failures[:5]]
    tell(Report("simtest", machine, (row,), {"schedules_per_min": rate}, _WANTED, tuple(remarks)), as_json=as_json)
