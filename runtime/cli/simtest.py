"""`baton simtest`: plays seeded schedules of a whole mesh in virtual time, and repeats one with its trace."""

import logging
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from runtime.cli.face import FAILED
from runtime.mesh.simulation import Failure, Report, explore, replay

_SHOWN = 20
# Fewer are played sooner than other processes have started.
_MANY = 50


def simtest(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to play.")] = 200,
    first: Annotated[int, typer.Option("--from", min=0, help="The first seed.")] = 0,
    repeat: Annotated[
        int | None, typer.Option("--replay", min=0, metavar="SEED", help="Play this one seed and print its trace.")
    ] = None,
) -> None:
    """Play a whole mesh in virtual time under seeded faults, and check its numbered invariants.

    Every seed is another schedule of requests and conversations, delays, losses, partitions, freezes, drains and deaths
    of workers, gateways, the controller and the session store, whose clocks are minutes apart. A seed that violates an
    invariant is printed and does the same again with --replay. Exits with 1 when there was one.
    """
    logging.getLogger("runtime").setLevel(logging.ERROR)  # here a lost worker is no news
    failed = _replay(repeat) if repeat is not None else _explore(range(first, first + seeds))
    if failed:
        raise typer.Exit(FAILED)


def _explore(seeds: range) -> bool:
    console = Console()
    columns = (
        TextColumn("playing seeds"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), disable=not console.is_terminal)
    with progress:
        task = progress.add_task("", total=len(seeds))
        processes = len(os.sched_getaffinity(0)) if len(seeds) >= _MANY else 1
        report = explore(seeds, lambda sofar: progress.update(task, completed=sofar.seeds), processes=processes)
    _tell(report, seeds, console)
    return bool(report.failures)


def _tell(report: Report, seeds: range, console: Console) -> None:
    span = f"seeds {seeds[0]} to {seeds[-1]}"
    if not report.failures:
        console.print(Text(f"{span}: no invariant violated", style="green"))
        return
    for failure in report.failures[:_SHOWN]:
        _show(failure, console)
    more = len(report.failures) - _SHOWN
    if more > 0:
        console.print(f"... and {more} more")
    console.print(Text(f"{span}: {len(report.failures)} of {report.seeds} violate an invariant", style="red"))
    console.print(f"baton simtest --replay {report.failures[0].seed}  # shows how it came to the first")


def _replay(seed: int) -> bool:
    console = Console(soft_wrap=True)
    failure, trace = replay(seed)
    for line in trace:
        console.print(Text(line))
    if failure is None:
        console.print(Text(f"seed {seed}: no invariant violated", style="green"))
        return False
    _show(failure, console)
    return True


def _show(failure: Failure, console: Console) -> None:
    for message in failure.messages:
        console.print(Text(f"seed {failure.seed}: {message}", style="red"), soft_wrap=True)
