"""SQLite, for one gateway: a thread that writes, a few that read. Durable through a loss of power (WAL, FULL).

The writer takes all that waits, runs it in one transaction and acknowledges all of it together; so the more write at
once, the fewer flushes of the disk each of them costs.
"""

import asyncio
import contextlib
import functools
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from runtime.errors import BatonError, Internal, ResourceExhausted, SetupError, StartError, Unavailable
from runtime.store.schema import migrate
from runtime.store.sealing import MasterKey, Seals
from runtime.store.transaction import Row, Transaction, Work

T = TypeVar("T")
_READERS = 4
_TOGETHER = 256
_WAITING = 65_536
_BUSY_S = 5.0
# How long the writer waits at once for readers to let the log be emptied, how long others write then, and how often.
_EMPTYING_S = 0.02
_BETWEEN_S = 0.1
_EMPTYINGS = 40


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work[Any]
    done: "asyncio.Future[Any]" = field(repr=False)


class SqliteTransaction:
    """On a connection that is in a transaction, and on its thread: nothing here ever waits for the event loop."""

    def __init__(self, connection: sqlite3.Connection, seals: Seals) -> None:
        self._connection = connection
        self.seals = seals

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        return self._connection.execute(_translated(sql), arguments).fetchall()

    async def row(self, sql: str, *arguments: object) -> Row | None:
        return self._connection.execute(_translated(sql), arguments).fetchone()

    async def run(self, sql: str, *arguments: object) -> int:
        return self._connection.execute(_translated(sql), arguments).rowcount

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None:
        self._connection.executemany(_translated(sql), arguments)


class SqliteDatabase:
    def __init__(self, path: Path, master: MasterKey) -> None:
        self._path = path
        self._master = master
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="sessions-read")
        self._reading = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._writer = threading.Thread(target=self._write_all, name="sessions-write", daemon=True)

    async def open(self) -> None:
        """Raises `StartError` when the file cannot be used."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = _connect(self._path)
            self._path.chmod(0o600)
            self._connections.append(self._connection)
            self._writer.start()
            if await self.write(migrate):
                await self.scrub()
        except (sqlite3.Error, OSError, Unavailable) as error:
            raise StartError(f"sessions.store: {self._path} cannot be used: {error}") from error

    async def write(self, work: Work[T]) -> T:
        if self._waiting >= _WAITING:
            raise ResourceExhausted(f"{self._waiting} writes wait for the session store", retry_after_ms=1000)
        job = _Job(work, self._loop.create_future())
        self._waiting += 1
        self._jobs.put(job)
        return cast("T", await job.done)

    async def read(self, work: Work[T]) -> T:
        return await self._loop.run_in_executor(self._readers, self._read, work)

    async def scrub(self) -> bool:
        """The deleted is overwritten in the file, and the log that still has it is emptied, once nobody reads it. While
        somebody does, others write."""
        for _ in range(_EMPTYINGS - 1):
            try:
                await self.write(_emptied)
            except Unavailable:
                await asyncio.sleep(_BETWEEN_S)
            else:
                return True
        await self.write(_emptied)
        return True

    async def close(self) -> None:
        self._jobs.put(None)
        if self._writer.ident is not None:
            await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    def _read(self, work: Work[T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._reading, "connection", None)
        try:
            if connection is None:
                connection = self._reading.connection = _connect(self._path)
                self._connections.append(connection)
            connection.execute("BEGIN")
            try:
                return driven(work, connection, Seals(self._master))
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            raise _unavailable(error) from error
        except sqlite3.Error as error:
            raise Internal(f"the session store failed: {error}") from error

    def _write_all(self) -> None:
        """The writer's life."""
        ending = False
        while not ending:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                batch.append(job)
                if len(batch) == _TOGETHER or self._jobs.empty() or job.work is _emptied:
                    break
                job = self._jobs.get()
            ending = job is None
            if batch:
                answers = self._commit(batch)
                self._loop.call_soon_threadsafe(self._answer, answers)

    def _commit(self, batch: list[_Job]) -> list[Callable[[], None]]:
        """Run all of a batch; gives how to answer each, for the event loop."""
        connection = self._connection
        if batch[-1].work is _emptied:
            last = batch.pop()
            return [*(self._commit(batch) if batch else ()), self._empty(last)]
        try:
            connection.execute("BEGIN IMMEDIATE")
            answers = [self._run(connection, job) for job in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            # One that fails is tried again with the next batch, which cannot begin before.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            return [functools.partial(_fail, job.done, _unavailable(error)) for job in batch]
        return answers

    def _empty(self, job: _Job) -> Callable[[], None]:
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {round(_EMPTYING_S * 1000)}")
            try:
                busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._connection.execute(f"PRAGMA busy_timeout = {round(_BUSY_S * 1000)}")
        except sqlite3.Error as error:
            return functools.partial(_fail, job.done, _unavailable(error))
        if busy:
            late = Unavailable("what was deleted is still in the log, because somebody reads", retry_after_ms=1000)
            return functools.partial(_fail, job.done, late)
        return functools.partial(_succeed, job.done, None)

    def _run(self, connection: sqlite3.Connection, job: _Job) -> Callable[[], None]:
        connection.execute("SAVEPOINT job")
        try:
            result = driven(job.work, connection, Seals(self._master))
        except (BatonError, SetupError) as error:
            connection.execute("ROLLBACK TO job")
            return functools.partial(_fail, job.done, error)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug is for whoever asked, the others' work goes on
            connection.execute("ROLLBACK TO job")
            told = Internal(f"the session store failed: {error}") if isinstance(error, sqlite3.Error) else error
            return functools.partial(_fail, job.done, told)
        connection.execute("RELEASE job")
        return functools.partial(_succeed, job.done, result)

    def _answer(self, answers: list[Callable[[], None]]) -> None:
        self._waiting -= len(answers)
        for answer in answers:
            answer()


async def _emptied(_tx: Transaction) -> None:
    """Stands among the jobs for emptying the log, which is no transaction."""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.create_function("now_ms", 0, lambda: time.time_ns() // 1_000_000)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # What was deleted is overwritten: an erased session is not to be found in free pages.
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def driven(work: Work[T], connection: sqlite3.Connection, seals: Seals) -> T:
    """Run it to its end, here and now, on a connection that is in a transaction: on SQLite that awaits nothing that is
    not there."""
    running = cast("Coroutine[Any, Any, T]", work(cast("Transaction", SqliteTransaction(connection, seals))))
    try:
        running.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("a transaction on SQLite waited for something")


def _unavailable(error: sqlite3.Error) -> Unavailable:
    return Unavailable(f"the session store does not answer: {error}", retry_after_ms=1000)


def _fail(done: "asyncio.Future[Any]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def _succeed(done: "asyncio.Future[Any]", result: object) -> None:
    if not done.done():
        done.set_result(result)


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    """Out of PostgreSQL's words. The writer is alone, so it needs no locks of rows."""
    return re.sub(r" FOR UPDATE( OF \w+)?", "", re.sub(r"\$(\d+)", r"?\1", sql)).replace("BYTEA", "BLOB")
