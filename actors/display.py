"""How starting and running a mesh looks in a terminal. Owns the progress lines; decides nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from actors.events import Event, News, Step
from actors.state import Record, StateFolder

_PARTS = {"ray": "Ray", "workers": "workers", "gateway": "gateway"}


class StartDisplay:
    """One line for each part that starts, side by side; where there is no terminal, one line as each is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description:<8}"),
            TextColumn("[dim]{task.fields[detail]}", markup=True),
            TimeElapsedColumn(),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        for part, name in _PARTS.items():
            self._tasks[part] = self._progress.add_task(name, total=1, detail="")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def hear(self, event: Event) -> None:
        match event:
            case Step(part=part, detail=detail, done=done):
                finished = self._progress.tasks[self._tasks[part]].finished
                self._progress.update(self._tasks[part], detail=detail, completed=int(done))
                if done and not finished and not self._console.is_terminal:
                    self._console.print(f"{_PARTS[part]}: {detail}", highlight=False)
            case News(text=text):
                self._console.print(f"[yellow]•[/yellow] {text}", highlight=False)


@contextmanager
def stopping(console: Console) -> Iterator[None]:
    with console.status("stopping: streams in flight are finished first; Ctrl-C again ends them"):
        yield
    console.print("stopped; nothing is left running", style="dim")


def tell_addresses(console: Console, record: Record, folder: StateFolder) -> None:
    """Where the mesh answers, and what to try."""
    console.print()
    console.print(f"[bold]{record.mesh}[/bold] serves", highlight=False)
    lines = [("gRPC", record.grpc), ("HTTP", f"{record.http}/v1  (OpenAI's API)")]
    if record.dashboard:
        lines.append(("Ray", f"{record.dashboard}  {_key(record, folder)}"))
    lines.append(("log", str(record.log)))
    lines.append(("door", record.security))
    for name, value in lines:
        console.print(f"  {name:<5} {value}", highlight=False, soft_wrap=True)
    console.print()
    console.print("Try", highlight=False)
    for command in _commands(record):
        console.print(f"  {command}", style="cyan", highlight=False, soft_wrap=True, markup=False)
    console.print()


def _key(record: Record, folder: StateFolder) -> str:
    if not record.own:
        return "(it asks for the cluster's token)"
    return f"(it asks for the token in {folder.token})"


def _commands(record: Record) -> tuple[str, str, str]:
    where = "" if record.mesh == "local" else f" --target {record.grpc}"
    return (
        f"baton chat{where}",
        f"curl {record.http}/v1/models",
        "baton status",
    )
