"""`baton up` and `baton down`: a mesh on this machine or on a running Ray cluster, started and cleared away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from actors.display import StartDisplay, stopping, tell_addresses
from actors.state import StateFolder
from actors.status import ConfigFile
from actors.supervised import Supervised, stop_mesh
from actors.supervisor import clear_leftovers
from runtime.cli.face import Addresses
from runtime.cli.talk.demo import run_demo
from runtime.config import Config, load_config
from runtime.mesh.security import own_credentials


def up(
    config: ConfigFile = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; `baton down` ends it.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Have a short conversation with it first.")] = False,
    leave: Annotated[bool, typer.Option("--exit", help="Stop after the demo instead of serving on.")] = False,
) -> None:
    """Start a mesh, wait until it is ready, and serve until Ctrl-C."""
    settings = load_config(config)
    console = Console()
    with _started(settings, console) as mesh:
        record = mesh.record
        if demo:
            run_demo(record.grpc, console, own_credentials(settings))
        if leave:
            return
        tell_addresses(console, record, StateFolder(settings.state))
        if detach:
            mesh.detach()
            return
        console.print("Ctrl-C stops it.", style="dim")
        try:
            mesh.wait_ended()
        except KeyboardInterrupt:
            console.print()


def down(config: ConfigFile = None) -> None:
    """Stop a running mesh: streams in flight are finished, everything it started is ended, nothing else."""
    settings, console = load_config(config), Console()
    folder = StateFolder(settings.state)
    if folder.holder() is not None:
        with _ended_by_signals(), stopping(console):
            stop_mesh(folder)
        return
    with folder.held():
        cleared = clear_leftovers(folder)
    what = "cleared away what a killed mesh left" if cleared else f"no mesh named {settings.mesh.name} is running"
    console.print(what, highlight=False)


@contextmanager
def start_mesh(config: Config) -> Iterator[Addresses]:
    """The whole mesh of a configuration, Ray and all, for as long as the context is open."""
    with _started(config, Console(stderr=True)) as mesh:
        yield Addresses(grpc=mesh.record.grpc, http=mesh.record.http)


@contextmanager
def _started(config: Config, console: Console) -> Iterator[Supervised]:
    display = StartDisplay(console)
    with _ended_by_signals():
        mesh = Supervised(config, display.hear)
        try:
            with display:
                mesh.wait_ready()
            yield mesh
        finally:
            if mesh.lives:
                with stopping(console):
                    _stop(mesh)


def _stop(mesh: Supervised) -> None:
    try:
        mesh.stop()
    except KeyboardInterrupt:
        mesh.stop()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What ends a terminal or a container ends the mesh as Ctrl-C does."""
    kept = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
