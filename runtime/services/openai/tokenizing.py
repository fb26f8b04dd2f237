"""Long texts become tokens on threads of their own, so that the event loop goes on serving.

Never queues without a bound.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

from runtime.errors import ResourceExhausted

T = TypeVar("T")
_BUSY = "too many long prompts are being tokenized now"


class TokenizingPool:
    def __init__(self, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._room = BoundedSemaphore(threads + waiting)

    async def run(self, work: Callable[[], T]) -> T:
        """Raises `ResourceExhausted` when there is no room; a caller that leaves early leaves `work` to end itself."""
        if not self._room.acquire(blocking=False):
            raise ResourceExhausted(_BUSY, retry_after_ms=1000)
        future = self._threads.submit(work)
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _release(self, _done: Future[T]) -> None:
        self._room.release()
