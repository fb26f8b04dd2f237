"""Holds an async context open in a task of its own, for hosts that call a start and a stop where others have a body.

Ray's actors and Serve's replicas are such hosts; everybody else writes `async with`.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Resident(Generic[T]):
    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self._leave = asyncio.Event()

    async def start(self) -> T:
        """Enter the context; raises what entering it raised."""
        loop = asyncio.get_running_loop()
        self._entered: asyncio.Future[T] = loop.create_future()
        self._task = loop.create_task(self._hold())
        await asyncio.wait((self._task, self._entered), return_when=asyncio.FIRST_COMPLETED)
        if not self._entered.done():
            self._task.result()
        return await self._entered

    async def ended(self) -> None:
        """Wait until the context was left; raises what broke it."""
        await asyncio.shield(self._task)

    def check(self) -> None:
        """Raise what broke the context, if anything did."""
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Leave the context, wait until it is left, and raise what that raised."""
        self._leave.set()
        await self._task

    async def abort(self) -> None:
        """Cancel whatever is inside, and wait until it is gone."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _hold(self) -> None:
        async with self._context as entered:
            self._entered.set_result(entered)
            await self._leave.wait()
