"""PostgreSQL, for two gateways and more. A failover of the database must lose no commit, or an epoch could go
backwards: have it replicate synchronously.
"""

import asyncio
from typing import Any, TypeVar, cast

import asyncpg

from runtime.errors import Internal, StartError, Unavailable
from runtime.store.schema import migrate
from runtime.store.sealing import MasterKey, Seals
from runtime.store.transaction import Row, Transaction, Work

T = TypeVar("T")
_CONNECTIONS = 16
_ANSWER_S = 10.0
_TRIES = 10
_MIGRATING = 7_141_992_026  # names our advisory lock
_CLOCK = """CREATE OR REPLACE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS
    $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint $$"""
# Two transactions were in each other's way; one of them was undone, and is run again.
_AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)
_SILENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    OSError,
    TimeoutError,
)


class PostgresTransaction:
    def __init__(self, connection: Any, seals: Seals) -> None:  # noqa: ANN401 - of the pool
        self._connection = connection
        self.seals = seals

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        return cast("list[Row]", await self._connection.fetch(sql, *arguments))

    async def row(self, sql: str, *arguments: object) -> Row | None:
        return await self._connection.fetchrow(sql, *arguments)

    async def run(self, sql: str, *arguments: object) -> int:
        status: str = await self._connection.execute(sql, *arguments)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdecimal() else 0

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None:
        await self._connection.executemany(sql, arguments)


class PostgresDatabase:
    """`dsn` as PostgreSQL takes it: postgresql://user@host/database. A password is better in `~/.pgpass`."""

    def __init__(self, dsn: str, master: MasterKey) -> None:
        self._dsn = dsn
        self._master = master
        self._pool: Any = None

    async def open(self) -> None:
        """Raises `StartError` when it does not answer, or holds the tables of a newer Baton."""
        try:
            self._pool = await asyncpg.create_pool(
                self._dsn, min_size=1, max_size=_CONNECTIONS, timeout=_ANSWER_S, command_timeout=_ANSWER_S
            )
            await self.write(_prepared)
        except (*_SILENT, asyncpg.PostgresError, ValueError, Unavailable, Internal) as error:
            raise StartError(f"sessions.store: the database cannot be used: {error}") from error

    async def write(self, work: Work[T]) -> T:
        for left in reversed(range(_TRIES)):
            try:
                return await self._run(work)
            except _AGAIN as error:
                if not left:
                    raise Unavailable(f"the session store is too busy: {error}", retry_after_ms=1000) from error
                await asyncio.sleep(0)
        raise AssertionError("the last try returns or raises")

    async def read(self, work: Work[T]) -> T:
        return await self._run(work, isolation="repeatable_read", readonly=True)

    async def scrub(self) -> bool:
        """The files are the server's: VACUUM and its own log decide how long they remember."""
        return False

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def _run(self, work: Work[T], **kind: object) -> T:
        """What fails while it commits may have happened all the same: every transaction here can be run again."""
        try:
            async with self._pool.acquire(timeout=_ANSWER_S) as connection, connection.transaction(**kind):
                return await work(PostgresTransaction(connection, Seals(self._master)))
        except _SILENT as error:
            raise Unavailable(f"the session store does not answer: {error}", retry_after_ms=1000) from error
        except _AGAIN:
            raise
        except asyncpg.PostgresError as error:
            raise Internal(f"the session store refused a statement: {error}") from error


async def _prepared(tx: Transaction) -> None:
    """Gateways that start together migrate one after the other."""
    await tx.row("SELECT pg_advisory_xact_lock($1)", _MIGRATING)
    await tx.run(_CLOCK)
    await migrate(tx)
