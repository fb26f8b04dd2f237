"""Serves an ASGI application on a port, where no Ray Serve does. Leaves the process's signals alone."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from runtime.errors import StartError


@asynccontextmanager
async def http_server(app: Starlette, host: str, port: int) -> AsyncIterator[int]:
    """Yields the port, of which 0 takes any free one; raises `StartError` when it cannot be listened on."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise StartError(f"port {port} on {host} cannot be listened on: {error.strerror}") from error
    with listener:
        await server.startup(sockets=[listener])
        try:
            yield int(listener.getsockname()[1])
        finally:
            await server.shutdown(sockets=[listener])
