"""The stores that have to pass the same tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.ports import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SessionStore]:
    database = SqliteDatabase(tmp_path / "sessions.sqlite")
    await database.open()
    yield SqlSessionStore(database)
    await database.close()
