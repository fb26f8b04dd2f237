"""How the `baton` command looks: its panels, its consoles and its failures. Owns exit statuses; knows no command."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import batonmesh
from runtime.config import Config
from runtime.errors import BatonError, SetupError

RUN = "Run a mesh"
TALK = "Talk to it"
LOOK = "Look inside"
_PANELS = (RUN, TALK, LOOK)

FAILED = 1
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a mesh answers: host:port of its gRPC server, and the root URL of its HTTP server."""

    grpc: str
    http: str


MeshStarter = Callable[[Config], AbstractContextManager[Addresses]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What whoever runs the command line lends it, as typer's `obj`.

    `start_mesh` starts the whole mesh of a configuration, Ray and all, for as long as the context is open.
    """

    start_mesh: MeshStarter | None = None


class Face(TyperGroup):
    """Shows an error that a person can mend as one red line, without a traceback; our own bugs keep theirs."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(super().list_commands(ctx), key=self._panel)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (SetupError, BatonError, batonmesh.BatonError) as error:
            complain(str(error))
            raise typer.Exit(FAILED) from None
        except ExceptionGroup as group:
            for each in _mendable(group):
                complain(str(each))
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    def _panel(self, name: str) -> int:
        panel = getattr(self.commands[name], "rich_help_panel", None)
        return _PANELS.index(panel) if panel in _PANELS else len(_PANELS)


def _mendable(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    """What tasks failed with; raises the group when there is a bug of ours among it."""
    for error in group.exceptions:
        match error:
            case ExceptionGroup():
                yield from _mendable(error)
            case SetupError() | BatonError() | batonmesh.BatonError():
                yield error
            case _:
                raise group


def complain(message: str) -> None:
    """In red on stderr: a line, or one for every fault."""
    Console(stderr=True, soft_wrap=True).print(Text(message.strip(), style="red"))
