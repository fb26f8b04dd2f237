"""`baton doctor`: what this machine has, what of a configuration would run on it, what is missing and how to get it."""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.cli.doctor.accelerators import check_accelerators
from runtime.cli.doctor.libraries import check_libraries
from runtime.cli.doctor.machine import check_machine
from runtime.cli.doctor.node import Finding, Level, Node
from runtime.cli.doctor.verdict import check_configuration, runs_here
from runtime.cli.face import FAILED
from runtime.config import load_config

_STYLES = {Level.GOOD: "green", Level.LOW: "yellow", Level.MISSING: "yellow", Level.FAULT: "red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Say what of this configuration runs here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine has, what would run on it, and what is missing. Exits with 1 when the configuration named
    cannot run here."""
    node = Node()
    settings = load_config(config) if config is not None else None
    findings = [*check_machine(node), *check_accelerators(node), *check_libraries(node)]
    runs = None
    if settings is not None:
        findings += check_configuration(settings, node)
        runs = runs_here(settings, findings)
    if as_json:
        typer.echo(json.dumps({"runs": runs, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings, config, runs)
    if runs is False:
        raise typer.Exit(FAILED)


def _show(findings: list[Finding], config: Path | None, runs: bool | None) -> None:
    console = Console()
    for area, members in groupby(findings, lambda finding: finding.area):
        table = Table(box=None, show_header=False, pad_edge=False, title=area, title_justify="left", title_style="bold")
        for column in (24, 8):
            table.add_column(min_width=column, no_wrap=True)
        table.add_column(overflow="fold")
        for finding in members:
            told = Text(finding.found)
            if finding.remedy:
                told.append(f"\n{finding.remedy}", style="dim")
            table.add_row(finding.name, Text(finding.level, style=_STYLES[finding.level]), told)
        console.print(table)
        console.print()
    if runs is not None:
        verdict = ("runs here", "green") if runs else ("cannot run here", "red")
        console.print(Text.assemble(f"{config} ", verdict), soft_wrap=True)
