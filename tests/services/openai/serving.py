"""The application on a real HTTP server and port, and real clients that talk to it."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from runtime.roles.gateway import GatewayRole
from runtime.services.openai.app import openai_app
from runtime.services.openai.settings import OpenAiSettings

DEFAULTS = OpenAiSettings()


@dataclass(frozen=True)
class Api:
    url: str
    client: AsyncOpenAI
    http: httpx.AsyncClient


@asynccontextmanager
async def serving(gateway: GatewayRole, settings: OpenAiSettings = DEFAULTS) -> AsyncIterator[Api]:
    config = uvicorn.Config(openai_app(gateway, settings), log_level="critical", lifespan="on", ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await server.startup(sockets=[listener])
        try:
            async with (
                AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=_unsecured()) as client,
                httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http,
            ):
                yield Api(url, client, http)
        finally:
            await server.shutdown(sockets=[listener])


def _unsecured() -> DefaultAsyncHttpxClient:
    """Loading certificates takes longer than most tests."""
    return DefaultAsyncHttpxClient(verify=False)
