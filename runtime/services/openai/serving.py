"""An ASGI application for one path: reads the body within its bounds, watches whether the client is there.

Never knows what is asked.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from runtime.errors import BatonError, DeadlineExceeded
from runtime.services.openai.body import ClientGone, read_body
from runtime.services.openai.exchange import Exchange, deadline_of
from runtime.services.openai.settings import DEADLINE_HEADER, OpenAiSettings

T = TypeVar("T")


class Serving(ABC):
    def __init__(self, settings: OpenAiSettings) -> None:
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._serve(Exchange(scope, receive, send))
        except* (ClientGone, TimeoutError):
            pass  # nobody is there, or nobody reads: the connection ends with us

    async def _serve(self, exchange: Exchange) -> None:
        """Raises `TimeoutError` when the client did not read until well after its deadline."""
        arrived = asyncio.get_running_loop().time()
        try:
            ends = arrived + deadline_of(exchange.scope, self._settings.deadline_s)
            body = await within(ends, read_body(exchange.scope, exchange.receive, self._settings.max_body_bytes))
        except BatonError as error:
            await exchange.fail(error)
            return
        async with asyncio.timeout_at(ends + self._settings.linger_s), asyncio.TaskGroup() as group:
            watch = group.create_task(exchange.until_gone())
            await self._respond(exchange, body, ends)
            watch.cancel()

    @abstractmethod
    async def _respond(self, exchange: Exchange, body: bytes, ends: float) -> None:
        """Answer by the deadline `ends` of the event loop's clock, also when it goes wrong."""


async def within(ends: float, work: Awaitable[T]) -> T:
    """Raises `DeadlineExceeded`."""
    try:
        async with asyncio.timeout_at(ends):
            return await work
    except TimeoutError as error:
        raise DeadlineExceeded("the deadline passed while the request was read", field=DEADLINE_HEADER) from error
