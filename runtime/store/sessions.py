"""A `SessionStore` over any of the databases: which transaction answers which call, and whether it writes."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial

from runtime.domain.erasure import Erasure, WorkerReceipt
from runtime.domain.notices import Change, Notice
from runtime.domain.retention import KeptFor
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
from runtime.domain.spending import Amounts
from runtime.domain.tools import Pending, ToolResult
from runtime.errors import Unavailable
from runtime.ids import GatewayId, SessionId, TenantId, TurnId
from runtime.store import (
    accounting,
    adding,
    beginning,
    branching,
    editing,
    erasing,
    keeping,
    looking,
    moving,
    opening,
    owning,
    paging,
    pruning,
    running,
    submitting,
    sweeping,
)
from runtime.store.bells import Bell, Bells
from runtime.store.bundle import Bundle, read_bundle, too_large, write_bundle
from runtime.store.checking import check_bundle
from runtime.store.inflating import MAX_INFLATED_BYTES, inflated
from runtime.store.transaction import Database, Transaction


class SqlSessionStore:
    def __init__(self, database: Database, bells: Bells | None = None) -> None:
        """The database has been migrated. `bells` wake those who watch sessions, by default in this process only."""
        self._database = database
        self._bells = bells or Bells()

    async def create(self, session: Session, key: Key | None, said: TurnRecord | None = None) -> Session:
        return await self._database.write(lambda tx: beginning.create_saying(tx, session, said, key))

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
        opened = await self._database.write(lambda tx: opening.open_turn(tx, turn, key))
        self._bells.ring(turn.session)
        return opened

    async def open_alone(self, session: Session, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool]:
        opened = await self._database.write(lambda tx: beginning.open_alone(tx, session, turn, key))
        self._bells.ring(opened[0].session)
        return opened

    async def waiting(self, session: SessionId, branch: str) -> TurnRecord | None:
        return await self._database.read(lambda tx: looking.first_waiting(tx, session, branch))

    async def begin(self, turn: TurnRecord) -> TurnRecord | None:
        begun = await self._database.write(lambda tx: opening.begin_turn(tx, turn))
        self._bells.ring(turn.session)
        return begun

    async def append(self, turn: TurnRecord, event: TurnEvent) -> None:
        await self._database.write(lambda tx: running.append_event(tx, turn, event))

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        await self._database.write(lambda tx: running.finish_turn(tx, turn, ending, tokens, events))
        self._bells.ring(turn.session)

    async def extend(self, turn: TurnRecord, want: Amounts, took: Amounts) -> Amounts:
        return await self._database.write(lambda tx: running.extend_turn(tx, turn, want, took))

    async def book(self, kept: KeptFor) -> None:
        await self._database.write(lambda tx: keeping.book(tx, kept))

    async def drop(self, turn: TurnRecord, ending: Ending) -> bool:
        dropped = await self._database.write(lambda tx: running.drop_turn(tx, turn, ending))
        self._bells.ring(turn.session)
        return dropped

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
        made = await self._database.write(lambda tx: branching.fork(tx, tenant, session, branch, at, name, key))
        self._bells.ring(session)
        return made

    async def rollback(
        self, tenant: TenantId, session: SessionId, branch: str, to: TurnId | None, key: Key | None
    ) -> Branch:
        back = await self._database.write(lambda tx: branching.rollback(tx, tenant, session, branch, to, key))
        self._bells.ring(session)
        return back

    async def drop_branch(self, tenant: TenantId, session: SessionId, branch: str) -> None:
        await self._database.write(lambda tx: pruning.drop_branch(tx, tenant, session, branch))
        self._bells.ring(session)
        with suppress(Unavailable):
            await self._database.scrub()

    async def submit(
        self, tenant: TenantId, session: SessionId, branch: str, results: Sequence[ToolResult], key: Key | None
    ) -> tuple[TurnId, tuple[Pending, ...]]:
        told = await self._database.write(lambda tx: submitting.submit(tx, tenant, session, branch, results, key))
        self._bells.ring(session)
        return told

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
        added = await self._database.write(lambda tx: adding.add_items(tx, turn, key))
        self._bells.ring(turn.session)
        return added

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
        described = await self._database.write(lambda tx: editing.describe(tx, tenant, session, metadata))
        self._bells.ring(session)
        return described

    async def forget(self, tenant: TenantId, turn: TurnId) -> None:
        if await self._database.write(lambda tx: editing.forget(tx, tenant, turn)):
            with suppress(Unavailable):
                await self.scrub()

    async def delete(self, tenant: TenantId, session: SessionId) -> None:
        await self._database.write(lambda tx: erasing.delete(tx, tenant, session))
        self._bells.ring(session)
        with suppress(Unavailable):
            await self._database.scrub()

    async def update(self, tenant: TenantId, session: SessionId, change: Change, key: Key | None) -> None:
        await self._database.write(lambda tx: accounting.update(tx, tenant, session, change, key))
        self._bells.ring(session)

    async def notices(self, tenant: TenantId, session: SessionId, after: int, limit: int) -> tuple[Notice, ...]:
        return await self._database.read(lambda tx: accounting.notices_of(tx, tenant, session, after, limit))

    async def sweep(self, limit: int) -> tuple[SessionId, ...]:
        for lost in await self._database.read(lambda tx: keeping.untold(tx, limit)):
            await self.book(lost)
        swept = []
        for tenant, session in await self._database.read(lambda tx: sweeping.expired(tx, limit)):
            if await self._database.write(partial(sweeping.sweep, tenant=tenant, session=session)):
                self._bells.ring(session)
                swept.append(session)
        if swept:
            with suppress(Unavailable):
                await self._database.scrub()
        return tuple(swept)

    def hearing(self, session: SessionId) -> AbstractContextManager[Bell]:
        return self._bells.hearing(session)

    async def tend(self) -> None:
        await self._bells.tend()

    async def erase(self, tenant: TenantId, session: SessionId) -> Erasure:
        erased = await self._database.write(lambda tx: erasing.erase(tx, tenant, session))
        self._bells.ring(session)
        if not erased.scrubbed:
            with suppress(Unavailable):
                await self.scrub()  # or later, once nobody reads what was there before
        return await self.erasure(tenant, session)

    async def erasure(self, tenant: TenantId, session: SessionId) -> Erasure:
        return await self._database.read(lambda tx: erasing.erasure_of(tx, tenant, session))

    async def erasures(self, after: Erasure | None, limit: int) -> tuple[Erasure, ...]:
        return await self._database.read(lambda tx: erasing.pending(tx, after, limit))

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
        return await asyncio.to_thread(_written, bundle)

    async def take_in(self, tenant: TenantId, data: bytes, key: Key | None) -> Session:
        bundle = await asyncio.to_thread(_checked, data)
        return await self._database.write(lambda tx: moving.take_in(tx, tenant, bundle, key))

    async def close(self) -> None:
        await self._database.close()


def _written(bundle: Bundle) -> bytes:
    if inflated(bundle, MAX_INFLATED_BYTES) > MAX_INFLATED_BYTES:
        raise too_large()  # nobody would take it in
    return write_bundle(bundle)


def _checked(data: bytes) -> Bundle:
    bundle = read_bundle(data)
    check_bundle(bundle)
    return bundle
