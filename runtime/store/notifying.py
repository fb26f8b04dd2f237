"""PostgreSQL's LISTEN and NOTIFY, as a wake-up between gateways and nothing more: what is lost costs a watcher one
interval of looking. Never part of a transaction, because NOTIFY makes commits wait for one another.
"""

import asyncio
import logging
from typing import Any

import asyncpg

from runtime.store.bells import Bells

_log = logging.getLogger(__name__)
_CHANNEL = "baton_sessions"
_ANSWER_S = 10.0
_AGAIN_S = 1.0
_COMPANY_S = 0.02
_FAILED = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class NotifyingBells(Bells):
    """Rings here at once, and through the database at the other gateways."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self._dsn = dsn
        self._topics: set[str] = set()
        self._fresh = asyncio.Event()

    def ring(self, topic: str) -> None:
        super().ring(topic)
        self._topics.add(topic)
        self._fresh.set()

    async def tend(self) -> None:
        """On a connection of its own, that is made again when it breaks."""
        while True:
            try:
                await self._carry()
            except _FAILED as error:
                _log.warning("no word from other gateways for a while: %s", error)
            await asyncio.sleep(_AGAIN_S)

    async def _carry(self) -> None:
        connection: Any = await asyncpg.connect(self._dsn, timeout=_ANSWER_S, command_timeout=_ANSWER_S)
        try:
            connection.add_termination_listener(lambda _: self._fresh.set())
            await connection.add_listener(_CHANNEL, self._heard)
            self.ring_all()  # for what was said while nobody listened here
            while not connection.is_closed():
                await self._fresh.wait()
                await asyncio.sleep(_COMPANY_S)
                self._fresh.clear()
                topics, self._topics = [*self._topics], set()
                await connection.execute("SELECT pg_notify($1, topic) FROM unnest($2::text[]) topic", _CHANNEL, topics)
        finally:
            connection.terminate()

    def _heard(self, connection: Any, sender: int, _channel: str, topic: str) -> None:  # noqa: ANN401 - asyncpg's
        if sender != connection.get_server_pid():
            super().ring(topic)
