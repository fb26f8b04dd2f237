"""Writes down what keeping sessions' KV came to, as workers tell it. What is lost costs its session nothing."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from runtime.clock import Clock
from runtime.domain.retention import KeptFor
from runtime.errors import BatonError, ResourceExhausted, Unavailable
from runtime.session_store import SessionStore

_MOST = 10_000
_log = logging.getLogger(__name__)


class Booking:
    def __init__(self, store: SessionStore, clock: Clock, retry_s: float) -> None:
        self._store = store
        self._clock = clock
        self._retry_s = retry_s
        self._told: deque[KeptFor] = deque(maxlen=_MOST)
        self._some = asyncio.Event()

    def take(self, kept: Iterable[KeptFor]) -> None:
        self._told.extend(kept)
        self._some.set()

    async def run(self) -> None:
        """Until cancelled, one after the other: nobody waits for it."""
        while True:
            await self._some.wait()
            while self._told:
                await self._book(self._told.popleft())
            self._some.clear()

    async def _book(self, kept: KeptFor) -> None:
        try:
            await self._store.book(kept)
        except (Unavailable, ResourceExhausted):
            self._told.append(kept)
            await self._clock.sleep(self._retry_s)
        except BatonError as error:
            _log.warning("what was kept of a session is not booked: %s", error.message)
