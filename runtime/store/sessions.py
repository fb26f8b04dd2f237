"""A `SessionStore` over any of the databases: which transaction answers which call, and whether it writes."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from runtime.domain.erasure import Erasure, WorkerReceipt
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
from runtime.domain.tools import Pending, ToolResult
from runtime.errors import Unavailable
from runtime.ids import GatewayId, SessionId, TenantId, TurnId
from runtime.store import (
    adding,
    branching,
    editing,
    erasing,
    looking,
    moving,
    opening,
    owning,
    paging,
    pruning,
    running,
    submitting,
)
from runtime.store.bundle import Bundle, read_bundle, write_bundle
from runtime.store.checking import check_bundle
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

    async def drop_branch(self, tenant: TenantId, session: SessionId, branch: str) -> None:
        await self._database.write(lambda tx: pruning.drop_branch(tx, tenant, session, branch))
        with suppress(Unavailable):
            await self._database.scrub()

    async def submit(
        self, tenant: TenantId, session: SessionId, branch: str, results: Sequence[ToolResult], key: Key | None
    ) -> tuple[TurnId, tuple[Pending, ...]]:
        return await self._database.write(lambda tx: submitting.submit(tx, tenant, session, branch, results, key))

    async def calls(self, tenant: TenantId, session: SessionId, branch: str) -> tuple[Pending, ...]:
        async def work(tx: Transaction) -> tuple[Pending, ...]:
            await looking.session_of(tx, tenant, session)
            found = await looking.branch_of(tx, session, branch)
            return await looking.calls_of(tx, session, found.place.line, found.head)

        return await self._database.read(work)

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
            with suppress(Unavailable):
                await self.scrub()

    async def delete(self, tenant: TenantId, session: SessionId) -> None:
        await self._database.write(lambda tx: erasing.delete(tx, tenant, session))
        with suppress(Unavailable):
            await self._database.scrub()

    async def erase(self, tenant: TenantId, session: SessionId) -> Erasure:
        erased = await self._database.write(lambda tx: erasing.erase(tx, tenant, session))
        if not erased.scrubbed:
            with suppress(Unavailable):
                await self.scrub()  # or later, once nobody reads what was there before
        return await self.erasure(tenant, session)

    async def erasure(self, tenant: TenantId, session: SessionId) -> Erasure:
        return await self._database.read(lambda tx: erasing.erasure_of(tx, tenant, session))

    async def erasures(self) -> tuple[Erasure, ...]:
        return await self._database.read(erasing.pending)

    async def scrub(self) -> None:
        gone = await self._database.read(erasing.unscrubbed)
        if await self._database.scrub():
            await self._database.write(lambda tx: erasing.scrubbed(tx, gone))

    async def told(self, session: SessionId, worker: WorkerReceipt) -> None:
        await self._database.write(lambda tx: erasing.tell(tx, session, worker))

    async def settle(self, session: SessionId, after_s: float) -> None:
        await self._database.write(lambda tx: erasing.settle(tx, session, after_s))

    async def read_out(self, tenant: TenantId, session: SessionId) -> bytes:
        bundle = await self._database.read(lambda tx: moving.read_out(tx, tenant, session))
        return await asyncio.to_thread(write_bundle, bundle)

    async def take_in(self, tenant: TenantId, data: bytes, key: Key | None) -> Session:
        bundle = await asyncio.to_thread(_checked, data)
        return await self._database.write(lambda tx: moving.take_in(tx, tenant, bundle, key))

    async def close(self) -> None:
        await self._database.close()


def _checked(data: bytes) -> Bundle:
    bundle = read_bundle(data)
    check_bundle(bundle)
    return bundle
