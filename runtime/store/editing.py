"""Transactions that change what is known of a session or a turn. Never what was said in it."""

from collections.abc import Mapping

from runtime.domain.notices import Change
from runtime.domain.sessions import Session
from runtime.errors import NotFound
from runtime.ids import SessionId, TenantId, TurnId
from runtime.store.accounting import update
from runtime.store.erasing import delete
from runtime.store.looking import session_of, shown_turn
from runtime.store.pruning import prune
from runtime.store.transaction import Transaction


async def describe(tx: Transaction, tenant: TenantId, session: SessionId, metadata: Mapping[str, str]) -> Session:
    await update(tx, tenant, session, Change(metadata=metadata), None)
    return await session_of(tx, tenant, session)


async def forget(tx: Transaction, tenant: TenantId, turn: TurnId) -> bool:
    """Whether something of the session went with it: of one that nobody sees what no other response stands on, and all
    of it with the last."""
    found = await shown_turn(tx, tenant, turn)
    try:
        session = await session_of(tx, tenant, found.session, lock=True)
    except NotFound:
        return False  # deleted meanwhile
    # Who opens a turn holds its branch: what is opened now is seen, or finds nothing any more.
    await tx.rows("SELECT name FROM branches WHERE session = $1 FOR UPDATE", found.session)
    await tx.run("UPDATE turns SET hidden = 1 WHERE id = $1", turn)
    others = await tx.row("SELECT 1 FROM turns WHERE session = $1 AND hidden = 0 LIMIT 1", found.session)
    if not session.hidden:
        return False
    if others is not None:
        return await prune(tx, found.session)
    await delete(tx, tenant, found.session)
    return True
