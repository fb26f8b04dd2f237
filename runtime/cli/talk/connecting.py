"""Where the commands that talk find a mesh, and what they say when nobody is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import batonmesh
from batonmesh import Client, Credentials
from runtime.config import GatewayConfig
from runtime.errors import NotFound, StartError, Unavailable

_QUICK_S = 10.0

DEFAULT_TARGET = f"{GatewayConfig().host}:{GatewayConfig().grpc_port}"
Target = Annotated[str, typer.Option(envvar="BATON_TARGET", metavar="HOST:PORT", help="The gRPC address of a gateway.")]
Model = Annotated[str | None, typer.Option(help="Which model to ask; by default the first that is served.")]


def shown() -> Credentials:
    """What the environment says to trust and to show. Raises `StartError` naming a file that cannot be read."""
    try:
        return Credentials.from_environment()
    except OSError as error:
        raise StartError(f"{error.filename}: {error.strerror}; BATON_CA or BATON_CERTIFICATE names it") from error


@contextmanager
def connected(
    target: str, model: str | None = None, credentials: Credentials | None = None
) -> Iterator[tuple[Client, str]]:
    """A client, and the name of a model that it can ask. What it shows is by default told by the environment.

    Raises `Unavailable` when nobody answers, or `NotFound`.
    """
    with Client(target, credentials or shown()) as client:
        try:
            served = [each.name for each in client.list_models(timeout=_QUICK_S)]
        except (batonmesh.Unavailable, batonmesh.DeadlineExceeded) as error:
            hint = "start a mesh with `baton up`, or name one with --target"
            raise Unavailable(f"no mesh answers at {target}: {hint} ({error.message})") from error
        if not served:
            raise NotFound(f"the mesh at {target} serves no model")
        if model is not None and model not in served:
            raise NotFound(f"model {model!r} is not served at {target}; served are: {', '.join(served)}", field="model")
        yield client, model or served[0]
