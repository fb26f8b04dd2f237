"""Where a mesh keeps its sessions, and how its gateway does, as the configuration says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.config import Config
from runtime.ports import SessionStore
from runtime.roles.sessions import SessionSettings
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase

_FILE = "sessions.sqlite"
_BEATS = 5


@asynccontextmanager
async def session_store(config: Config) -> AsyncIterator[SessionStore | None]:
    """None where sessions are not kept. Raises `StartError` when the store cannot be used."""
    if config.sessions.store == "none":
        yield None
        return
    database = SqliteDatabase(config.state / _FILE)
    try:
        await database.open()
        yield SqlSessionStore(database)
    finally:
        await database.close()


def session_settings(config: Config) -> SessionSettings:
    sessions = config.sessions
    return SessionSettings(
        lease_s=sessions.lease_s, beat_s=sessions.lease_s / _BEATS, store_grace_s=sessions.store_grace_s
    )
