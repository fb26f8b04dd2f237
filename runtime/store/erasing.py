"""Transactions that make a session be gone: its rows and its data key, and the tombstone that outlives them."""

from runtime.domain.erasure import Erasure, WorkerReceipt
from runtime.errors import NotFound
from runtime.ids import BootId, SessionId, TenantId, WorkerId
from runtime.store.content import OF_A_SESSION
from runtime.store.looking import session_of
from runtime.store.packing import pack, unpack
from runtime.store.remembering import of_tenant
from runtime.store.transaction import Row, Transaction

_ERASURE = "SELECT session, tenant, at, counts, scrubbed FROM erasures"


async def delete(tx: Transaction, tenant: TenantId, session: SessionId) -> dict[str, int]:
    """Every row of a session; gives how many each table has lost."""
    await session_of(tx, tenant, session, lock=True)
    rows = {table: await tx.run(f"DELETE FROM {table} WHERE session = $1", session) for table in OF_A_SESSION}
    which = "scope = $1 OR (scope = $2 AND result = $1)"
    rows["keys"] = await tx.run(f"DELETE FROM keys WHERE {which}", session, of_tenant(tenant))
    rows["sessions"] = await tx.run("DELETE FROM sessions WHERE id = $1", session)
    return rows


async def erase(tx: Transaction, tenant: TenantId, session: SessionId) -> Erasure:
    """Doing it again gives what was done. Raises `NotFound`."""
    known = await _known(tx, tenant, session)
    if known is not None:
        return known
    rows = await delete(tx, tenant, session)
    await tx.run(
        "INSERT INTO erasures (session, tenant, at, counts, scrubbed, pending) VALUES ($1, $2, now_ms(), $3, 0, 1)",
        session,
        tenant,
        pack(rows),
    )
    return await erasure_of(tx, tenant, session)


async def erasure_of(tx: Transaction, tenant: TenantId, session: SessionId) -> Erasure:
    known = await _known(tx, tenant, session)
    if known is None:
        raise NotFound("there is no such session", field="session")
    return known


async def unscrubbed(tx: Transaction) -> tuple[SessionId, ...]:
    """Those of which the store's files may still have something."""
    return tuple([SessionId(row[0]) for row in await tx.rows(f"{_ERASURE} WHERE pending = 1 AND scrubbed = 0")])


async def scrubbed(tx: Transaction, sessions: tuple[SessionId, ...]) -> None:
    """Nothing of them is in the store's files any more."""
    await tx.run_many("UPDATE erasures SET scrubbed = 1 WHERE session = $1", [(session,) for session in sessions])


async def pending(tx: Transaction, after: Erasure | None, limit: int) -> tuple[Erasure, ...]:
    """Those that workers may still have to be told of, the oldest first: up to `limit` of those that follow `after`."""
    rows = await tx.rows(
        f"{_ERASURE} WHERE pending = 1 AND (at, session) > ($1, $2) ORDER BY at, session LIMIT $3",
        0 if after is None else after.at_ms,
        "" if after is None else after.session,
        limit,
    )
    return tuple([await _erasure(tx, row) for row in rows])


async def tell(tx: Transaction, session: SessionId, worker: WorkerReceipt) -> None:
    """Write down that a worker is to be told, or what it answered."""
    await tx.run(
        "INSERT INTO outbox (session, boot, worker, dropped, shared) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (session, boot) DO UPDATE SET dropped = COALESCE(outbox.dropped, $4),"
        " shared = COALESCE(outbox.shared, $5)",
        session,
        worker.boot,
        worker.worker,
        worker.dropped,
        worker.shared,
    )


async def settle(tx: Transaction, session: SessionId, after_s: float) -> None:
    """No late start of it can come any more, once so many seconds have passed."""
    await tx.run(
        "UPDATE erasures SET pending = 0 WHERE session = $1 AND at + $2 <= now_ms()", session, round(after_s * 1000)
    )


async def _known(tx: Transaction, tenant: TenantId, session: SessionId) -> Erasure | None:
    row = await tx.row(f"{_ERASURE} WHERE session = $1 AND tenant = $2", session, tenant)
    return None if row is None else await _erasure(tx, row)


async def _erasure(tx: Transaction, row: Row) -> Erasure:
    told = await tx.rows(
        "SELECT worker, boot, dropped, shared FROM outbox WHERE session = $1 ORDER BY worker, boot", row[0]
    )
    workers = tuple(WorkerReceipt(WorkerId(each[0]), BootId(each[1]), each[2], each[3]) for each in told)
    return Erasure(SessionId(row[0]), TenantId(row[1]), row[2], unpack(row[3]), bool(row[4]), workers)
