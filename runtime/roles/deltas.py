"""What a turn brings to whoever asked for it, as one stream that ends by itself. Never decides anything."""

import asyncio
from typing import Self

from runtime.domain.generation import Delta
from runtime.errors import BatonError


class Deltas:
    """What a turn brings to its client, in order, up to the delta with `finish`; or the error that it failed with."""

    def __init__(self, queue: asyncio.Queue[Delta | BatonError]) -> None:
        self._queue = queue
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        item = await self._queue.get()
        self._over = isinstance(item, BatonError) or item.finish is not None
        if isinstance(item, BatonError):
            raise item
        return item

    def ready(self) -> bool:
        """Whether the next step will not wait, so that what is there goes out together."""
        return not self._queue.empty()
