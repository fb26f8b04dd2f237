"""What every bench hands back: figures, the machine they were taken on, and how they stand to what was wanted."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

Cell = str | int | float
_PIPED_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Machine:
    """`load` is the load average of the last minute before the bench began: above 0, others were at work."""

    cpu: str
    cores: int
    memory_gib: float
    load: float
    system: str
    python: str

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            load=round(os.getloadavg()[0], 2),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure is wanted to be."""

    value: float
    at_least: bool = False

    def holds(self, measured: float) -> bool:
        return measured >= self.value if self.at_least else measured <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` share their keys, which carry the units; `ratios` are what projects and machines can be compared by.
    `more` are further tables by name."""

    bench: str
    machine: Machine
    rows: tuple[Mapping[str, Cell], ...]
    ratios: Mapping[str, float]
    wanted: Mapping[str, Bound] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    more: Mapping[str, tuple[Mapping[str, Cell], ...]] = field(default_factory=dict)

    def json(self) -> str:
        return json.dumps(
            {
                "bench": self.bench,
                "machine": asdict(self.machine),
                "commit": commit(),
                "rows": [dict(row) for row in self.rows],
                "ratios": dict(self.ratios),
            }
            | {name: [dict(row) for row in rows] for name, rows in self.more.items()}
        )

    def show(self, console: Console) -> None:
        machine = self.machine
        console.print(
            Text(
                f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}, "
                f"Python {machine.python}; load average before: {machine.load}; commit {commit()}",
                style="dim",
            )
        )
        console.print(_rows(f"baton bench {self.bench}", self.rows))
        for name, rows in self.more.items():
            console.print(_rows(name, rows))
        console.print(self._figures())
        for remark in self.remarks:
            console.print(Text(remark, style="dim"))

    def _figures(self) -> Table:
        table = Table("figure", "measured", "wanted", box=None, pad_edge=False)
        for name, measured in self.ratios.items():
            bound = self.wanted.get(name)
            style = "" if bound is None else "green" if bound.holds(measured) else "red"
            table.add_row(name, Text(_shown(measured), style=style), str(bound or ""))
        return table


def tell(report: Report, *, as_json: bool) -> None:
    """Print it: one JSON object, or tables as wide as the terminal, or as they like when there is none."""
    if as_json:
        typer.echo(report.json())
        return
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    report.show(console)


def commit() -> str:
    """The commit of the source this runs from, with a plus sign when it was changed since; empty when there is none."""
    here = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run(
            [*here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changes = subprocess.run(
            [*here, "status", "--porcelain", "--untracked-files=no"], capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout else "")


def _rows(title: str, rows: tuple[Mapping[str, Cell], ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0] if rows else ():
        justify: JustifyMethod = "left" if isinstance(rows[0][name], str) else "right"
        table.add_column(name.replace("_", " "), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row.values()))
    return table


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.3f}".rstrip("0")
    return f"{cell:,}" if isinstance(cell, int) else cell


def _cpu_model() -> str:
    """The model by name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
