"""The stores that have to pass the same tests."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from runtime.session_store import SessionStore
from runtime.store.content import OF_A_SESSION
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database, Transaction
from tests.store.servers import empty, postgres
from tests.store.talking import MASTER

Execute = Callable[[str], Awaitable[int]]
Rows = Callable[[], Awaitable[dict[str, int]]]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of a PostgreSQL server."""
    with postgres() as dsn:
        yield dsn


@pytest.fixture
def database(server: str) -> str:
    """The same, once it is empty."""
    empty(server)
    return server


@pytest.fixture(params=["sqlite", "postgres"])
async def kept(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Each database, migrated and empty."""
    if request.param == "sqlite":
        lite = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
        await lite.open()
        yield lite
        await lite.close()
        return
    from runtime.store.postgres import PostgresDatabase

    other = PostgresDatabase(request.getfixturevalue("database"), MASTER)
    await other.open()
    yield other
    await other.close()


@pytest.fixture
def store(kept: Database) -> SessionStore:
    return SqlSessionStore(kept)


@pytest.fixture
def execute(kept: Database) -> Execute:
    """Runs a statement behind the store's back."""
    return lambda sql: kept.write(lambda tx: tx.run(sql))


@pytest.fixture
def rows(kept: Database) -> Rows:
    """How many rows each table has."""

    async def count(tx: Transaction) -> dict[str, int]:
        return {table: (await tx.rows(f"SELECT COUNT(*) FROM {table}"))[0][0] for table in (*OF_A_SESSION, "sessions")}

    return lambda: kept.read(count)
