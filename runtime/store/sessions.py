"""A `SessionStore` over any of the databases: which transaction answers which call, and whether it writes."""

from collections.abc import Mapping, Sequence

from runtime.domain.sessions import (
    Branch,
    Context,
    Ending,
    Halt,
    Item,
    Key,
    Progress,
    Said,
    Session,
    TurnEvent,
    TurnRecord,
)
from runtime.ids import GatewayId, SessionId, TenantId, TurnId
from runtime.store import adding, branching, editing, looking, opening, owning, paging, running
from runtime.store.transaction import Database, Transaction


class SqlSessionStore:
    def __init__(self, database: Database) -> None:
        """The database has been migrated."""
        self._database = database

    async def create(self, session: Session, key: Key | None) -> Session:
        return await self._database.write(lambda tx: opening.create(tx, session, key))

    async def get(self, tenant: TenantId, session: SessionId) -> tuple[Session, tuple[Branch, ...]]:
        async def work(tx: Transaction) -> tuple[Session, tuple[Branch, ...]]:
            return await looking.session_of(tx, tenant, session), await looking.branches_of(tx, session)

        return await self._database.read(work)

    async def list(self, tenant: TenantId, after: SessionId | None, limit: int) -> tuple[Session, ...]:
        return await self._database.read(lambda tx: looking.sessions_of(tx, tenant, after, limit))

    async def context(
        self, tenant: TenantId, session: SessionId, branch: str, instructions: str | None = None
    ) -> Context:
        return await self._database.read(lambda tx: looking.context_of(tx, tenant, session, branch, instructions))

    async def known(self, tenant: TenantId, session: SessionId, key: Key) -> TurnRecord | None:
        async def work(tx: Transaction) -> TurnRecord | None:
            await looking.session_of(tx, tenant, session)
            return await looking.known_turn(tx, session, key)

        return await self._database.read(work)

    async def open(self, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool] | None:
        return await self._database.write(lambda tx: opening.open_turn(tx, turn, key))

    async def waiting(self, session: SessionId, branch: str) -> TurnRecord | None:
        return await self._database.read(lambda tx: looking.first_waiting(tx, session, branch))

    async def begin(self, turn: TurnRecord) -> TurnRecord | None:
        return await self._database.write(lambda tx: opening.begin_turn(tx, turn))

    async def append(self, turn: TurnRecord, event: TurnEvent) -> None:
        await self._database.write(lambda tx: running.append_event(tx, turn, event))

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        await self._database.write(lambda tx: running.finish_turn(tx, turn, ending, tokens, events))

    async def drop(self, turn: TurnRecord, ending: Ending) -> bool:
        return await self._database.write(lambda tx: running.drop_turn(tx, turn, ending))

    async def halt(self, tenant: TenantId, session: SessionId, turn: TurnId, halt: Halt) -> TurnRecord:
        return await self._database.write(lambda tx: running.halt_turn(tx, tenant, session, turn, halt))

    async def progress(self, tenant: TenantId, session: SessionId, turn: TurnId, after: int) -> Progress:
        return await self._database.read(lambda tx: looking.progress_of(tx, tenant, session, turn, after))

    async def beat(self, owner: GatewayId, lease_s: float) -> Mapping[TurnId, Halt]:
        return await self._database.write(lambda tx: owning.beat(tx, owner, lease_s))

    async def adopt(self, owner: GatewayId, mine: frozenset[TurnId], limit: int) -> tuple[TurnRecord, ...]:
        return await self._database.write(lambda tx: owning.adopt(tx, owner, mine, limit))

    async def fork(
        self, tenant: TenantId, session: SessionId, branch: str, at: TurnId | None, name: str, key: Key | None
    ) -> Branch:
        return await self._database.write(lambda tx: branching.fork(tx, tenant, session, branch, at, name, key))

    async def rollback(
        self, tenant: TenantId, session: SessionId, branch: str, to: TurnId | None, key: Key | None
    ) -> Branch:
        return await self._database.write(lambda tx: branching.rollback(tx, tenant, session, branch, to, key))

    async def items(
        self, tenant: TenantId, session: SessionId, branch: str, after: int, limit: int
    ) -> tuple[tuple[int, TurnId, Item], ...]:
        async def work(tx: Transaction) -> tuple[tuple[int, TurnId, Item], ...]:
            await looking.session_of(tx, tenant, session)
            found = await looking.branch_of(tx, session, branch)
            return await looking.items_at(tx, session, found.place, after, limit)

        return await self._database.read(work)

    async def turn(self, tenant: TenantId, turn: TurnId) -> TurnRecord:
        return await self._database.read(lambda tx: looking.shown_turn(tx, tenant, turn))

    async def add(self, turn: TurnRecord, key: Key | None) -> TurnRecord:
        return await self._database.write(lambda tx: adding.add_items(tx, turn, key))

    async def page(
        self,
        tenant: TenantId,
        session: SessionId,
        branch: str,
        after: tuple[TurnId, int] | None,
        limit: int,
        *,
        newest_first: bool,
    ) -> tuple[Said, ...]:
        async def work(tx: Transaction) -> tuple[Said, ...]:
            await looking.session_of(tx, tenant, session)
            found = await looking.branch_of(tx, session, branch)
            return await paging.page_of(tx, session, found, after, limit, newest_first=newest_first)

        return await self._database.read(work)

    async def item(self, tenant: TenantId, session: SessionId, branch: str, turn: TurnId, number: int) -> Said:
        async def work(tx: Transaction) -> Said:
            await looking.session_of(tx, tenant, session)
            found = await looking.branch_of(tx, session, branch)
            return await paging.item_of(tx, session, found, turn, number)

        return await self._database.read(work)

    async def describe(self, tenant: TenantId, session: SessionId, metadata: Mapping[str, str]) -> Session:
        return await self._database.write(lambda tx: editing.describe(tx, tenant, session, metadata))

    async def forget(self, tenant: TenantId, turn: TurnId) -> None:
        if await self._database.write(lambda tx: editing.forget(tx, tenant, turn)):
            await self._database.scrub()

    async def delete(self, tenant: TenantId, session: SessionId) -> None:
        await self._database.write(lambda tx: branching.delete(tx, tenant, session))
        await self._database.scrub()

    async def close(self) -> None:
        await self._database.close()
