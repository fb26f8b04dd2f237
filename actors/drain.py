"""`baton drain`: has a worker leave a running mesh without losing a request, and tells how far that is."""

import time
from typing import Annotated

import typer
from rich.console import Console

from actors.state import StateFolder
from actors.status import ConfigFile, running_mesh
from batonmesh import BatonError, Client, Unavailable
from runtime.cli.talk.connecting import shown
from runtime.config import load_config
from runtime.errors import StartError
from runtime.mesh.security import own_credentials

_ANSWER_S = 5.0
_LOOK_S = 0.5
# How much longer than its grace a worker may take to be gone: its renewals, and a busy machine.
_PATIENCE_S = 60.0


def drain(
    worker: Annotated[str, typer.Argument(help="Its name, as `baton status` shows it.")],
    config: ConfigFile = None,
    target: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask this gateway, wherever it runs, and not our own mesh.")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds for what runs there to end.")] = 30.0,
) -> None:
    """Have a worker leave: nothing new is placed on it, what runs may end, the rest goes on elsewhere."""
    settings = load_config(config)
    credentials = shown()
    if target is None:
        target = running_mesh(StateFolder(settings.state), settings.mesh.name).grpc
        credentials = own_credentials(settings)
    try:
        with Client(target, credentials) as client:
            boots = {each.id: each.boot for each in client.topology(timeout=_ANSWER_S).workers}
            client.drain(worker, grace, timeout=_ANSWER_S)
            if worker not in boots:
                raise StartError(f"{worker} is told to leave, and this gateway has not seen it yet: ask again")
            _wait_gone(client, boots[worker], grace + _PATIENCE_S, Console())
    except Unavailable as error:
        raise StartError(f"the gateway at {target} does not answer: {error}") from error
    except BatonError as error:
        raise StartError(str(error)) from error


def _wait_gone(client: Client, boot: str, patience_s: float, console: Console) -> None:
    """Raises `StartError` when this generation of a worker is still there after `patience_s`."""
    ends, told = time.monotonic() + patience_s, -1
    while time.monotonic() < ends:
        here = [each for each in client.topology(timeout=_ANSWER_S).workers if each.boot == boot]
        if not here:
            console.print("it has left")
            return
        load = here[0].load
        running = load.running + load.waiting + load.awaiting
        if running != told:
            console.print(f"nothing new is placed on it, requests that run there: {running}", highlight=False)
            told = running
        time.sleep(_LOOK_S)
    raise StartError(f"it is still there after {patience_s:g} s")
