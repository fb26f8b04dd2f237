"""Where a mesh keeps its sessions, and how its gateway does, as the configuration says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from runtime.config import Config
from runtime.errors import StartError
from runtime.mesh.secret import open_secret
from runtime.roles.session_settings import SessionSettings
from runtime.session_store import SessionStore
from runtime.store.bells import Bells
from runtime.store.sealing import MasterKey
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from runtime.store.postgres import PostgresDatabase

_FILE = "sessions.sqlite"
_BEATS = 5


@asynccontextmanager
async def session_store(config: Config) -> AsyncIterator[SessionStore | None]:
    """None where sessions are not kept. Raises `StartError` when the store cannot be used."""
    if config.sessions.store == "none":
        yield None
        return
    database, bells = session_database(config)
    try:
        await database.open()
        yield SqlSessionStore(database, bells)
    finally:
        await database.close()


def session_database(config: Config) -> tuple["SqliteDatabase | PostgresDatabase", Bells]:
    """The database, not opened yet, and what wakes those who watch sessions kept in it."""
    master = MasterKey(open_secret(config.master_key, "sealing.key", "a master key"))
    if config.sessions.store == "sqlite":
        return SqliteDatabase(config.state / _FILE, master), Bells()
    try:
        from runtime.store.notifying import NotifyingBells
        from runtime.store.postgres import PostgresDatabase
    except ImportError as error:
        raise StartError("sessions.store: PostgreSQL needs asyncpg: pip install 'batonmesh[postgres]'") from error
    return PostgresDatabase(config.sessions.store, master), NotifyingBells(config.sessions.store)


def session_settings(config: Config) -> SessionSettings:
    sessions = config.sessions
    return SessionSettings(
        lease_s=sessions.lease_s, beat_s=sessions.lease_s / _BEATS, store_grace_s=sessions.store_grace_s
    )
