"""What the stores' transactions are written against, so that each is written once. Never knows which database it is.

SQL is PostgreSQL's with `$1` for arguments, where SQLite understands it too; `now_ms()` is the store's own clock.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from runtime.store.sealing import Seals

T = TypeVar("T")
Row = Any
"""A row of a result: a sequence of its columns."""


class Transaction(Protocol):
    seals: "Seals"

    async def rows(self, sql: str, *arguments: object) -> list[Row]: ...

    async def row(self, sql: str, *arguments: object) -> Row | None:
        """The first row."""

    async def run(self, sql: str, *arguments: object) -> int:
        """How many rows it changed."""

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None: ...


Work = Callable[[Transaction], Awaitable[T]]


class Database(Protocol):
    """`write` runs its work in a transaction that is durable when it returns; what the work raises undoes it.
    Both raise `Unavailable` when the database does not answer."""

    async def write(self, work: Work[T]) -> T: ...

    async def read(self, work: Work[T]) -> T:
        """All that the work reads is of one moment."""

    async def scrub(self) -> bool:
        """Leave nothing of what was deleted in the files; False when they are a server's."""

    async def close(self) -> None: ...
