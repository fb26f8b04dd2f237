"""Deletes sessions of which nothing happened for as long as they were to live (invariant 14).

A session goes whole or not at all. While a turn of it runs or waits, on whatever branch, all of it stays: also the
branches that the live one was forked from.
"""

from runtime.ids import SessionId, TenantId
from runtime.store.erasing import delete
from runtime.store.transaction import Transaction


async def expired(tx: Transaction, limit: int) -> tuple[tuple[TenantId, SessionId], ...]:
    """Those that may have to go, the longest expired first."""
    rows = await tx.rows(
        "SELECT s.tenant, s.id FROM accounts a JOIN sessions s ON s.id = a.session"
        " WHERE a.expires IS NOT NULL AND a.expires <= now_ms() AND NOT EXISTS (SELECT 1 FROM turns t"
        " WHERE t.session = a.session AND t.status IN ('queued', 'running')) ORDER BY a.expires LIMIT $1",
        limit,
    )
    return tuple((TenantId(row[0]), SessionId(row[1])) for row in rows)


async def sweep(tx: Transaction, tenant: TenantId, session: SessionId) -> bool:
    """Delete a session if it still is to go: decided again under the locks that whoever opens a turn, forks or changes
    it must have."""
    locked = await tx.row("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", session)
    if locked is None:
        return False
    await tx.rows("SELECT name FROM branches WHERE session = $1 ORDER BY name FOR UPDATE", session)
    row = await tx.row("SELECT expires - now_ms() FROM accounts WHERE session = $1 FOR UPDATE", session)
    live = await tx.row("SELECT 1 FROM turns WHERE session = $1 AND status IN ('queued', 'running') LIMIT 1", session)
    if live is not None or row is None or row[0] is None or row[0] > 0:
        return False
    await delete(tx, tenant, session)
    return True
