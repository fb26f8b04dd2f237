"""A store with very many sessions, made as fast as its database takes rows: the rows are those that `create` writes."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from runtime.domain.sessions import Session
from runtime.engine.simulated import SimulatedTokenizer
from runtime.ids import Ids, SessionId, TenantId
from runtime.store.opening import insert_session
from runtime.store.sealing import Seals
from runtime.store.transaction import Database, Row, Transaction

_TOGETHER = 5000


class _Gathered:
    """A transaction that keeps what is to be written for later, and writes it many rows at a time."""

    def __init__(self, seals: Seals) -> None:
        self.seals = seals
        self._rows: dict[str, list[tuple[object, ...]]] = defaultdict(list)

    async def run(self, sql: str, *arguments: object) -> int:
        self._rows[sql].append(arguments)
        return 1

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None:
        self._rows[sql] += arguments

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        raise AssertionError("making a session reads nothing")

    async def row(self, sql: str, *arguments: object) -> Row | None:
        raise AssertionError("making a session reads nothing")

    async def write(self, tx: Transaction) -> None:
        for sql, rows in self._rows.items():
            await tx.run_many(sql, rows)


async def fill(database: Database, ids: Ids, tenant: TenantId, model: str, sessions: int) -> list[SessionId]:
    """Make so many sessions; gives their names. These grow, or a table of a million rows would be written all over."""
    names = sorted(ids.session() for _ in range(sessions))
    vocabulary = SimulatedTokenizer.vocabulary
    for begin in range(0, sessions, _TOGETHER):
        made = [Session(name, tenant, model, 0, vocabulary=vocabulary) for name in names[begin : begin + _TOGETHER]]
        await database.write(partial(_insert, made))
    return names


async def _insert(sessions: Sequence[Session], tx: Transaction) -> None:
    gathered = _Gathered(tx.seals)
    for session in sessions:
        await insert_session(gathered, session)
    await gathered.write(tx)
