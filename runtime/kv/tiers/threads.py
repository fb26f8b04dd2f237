"""Threads that may hang in a store for ever: what waits for them can be given up, and no process waits for their end.

It would for those of an executor: the interpreter joins them.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """`count` daemons, begun when they are first needed. What is cancelled before its turn is let go of at once."""

    def __init__(self, count: int, name: str) -> None:
        names = [f"{name}-{each}" for each in range(count)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def run(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """Its result, on the running loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        entry = (loop, future, job)
        future.add_done_callback(lambda done: self._give_up(entry) if done.cancelled() else None)
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._jobs.append(entry)
            self._changed.notify()
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        return future

    def close(self) -> None:
        """Begin nothing more; what waits is cancelled. Called on the loop."""
        with self._changed:
            self._closed = True
            waiting = list(self._jobs)
            self._changed.notify_all()
        for _, future, _ in waiting:
            future.cancel()

    def join(self, ends: float) -> bool:
        """Wait for what is under way, until `time.monotonic()` is `ends`; whether all of it is over. Blocks."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(ends - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _give_up(self, entry: _Job) -> None:
        with self._changed:
            if entry in self._jobs:
                self._jobs.remove(entry)

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            loop, future, job = entry
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - it is for whoever waits
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _succeed, future, result)
            del entry, future, job

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            return None if self._closed else self._jobs.popleft()


def _tell(loop: asyncio.AbstractEventLoop, *call: Any) -> None:  # noqa: ANN401 - arguments as they are
    try:
        loop.call_soon_threadsafe(*call)
    except RuntimeError:
        """The loop is closed: nobody waits any more."""


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _succeed(future: "asyncio.Future[T]", result: T) -> None:
    if not future.done():
        future.set_result(result)
