"""Transactions on KV that is kept while sessions are away: a turn that has ended holds in reserve what keeping its KV
may come to, until it is told what it came to (invariant 12).
"""

from runtime.domain.retention import KeptFor, Retained
from runtime.domain.spending import Reserve
from runtime.ids import SessionId, TurnId
from runtime.store.accounting import spend_kept
from runtime.store.packing import pack_kept, pack_reserve
from runtime.store.transaction import Transaction

# So long after its end a worker that has not told of it is gone, and the pages with it.
_TOLD_MS = 60_000


async def hold_kept(tx: Transaction, turn: TurnId, retained: Retained | None) -> None:
    """A turn ends: of what it held it holds this much on, or nothing."""
    if retained is None or retained.refusal is not None:
        await tx.run("UPDATE turns SET held = NULL WHERE id = $1", turn)
        return
    await tx.run(
        "UPDATE turns SET held = $2, kept = $3, kept_until = now_ms() + $4 WHERE id = $1",
        turn,
        pack_reserve(Reserve(retained.reserve)),
        pack_kept(retained),
        retained.keep_ms,
    )


async def book(tx: Transaction, kept: KeptFor) -> None:
    exists = await tx.row("SELECT 1 FROM accounts WHERE session = $1 FOR UPDATE", kept.session)
    row = await tx.row(
        "SELECT 1 FROM turns WHERE id = $1 AND session = $2 AND kept_until IS NOT NULL", kept.turn, kept.session
    )
    if exists is None or row is None:
        return  # it was told before, the session is gone, or the worker knows more of a turn than was committed
    await spend_kept(tx, kept.session, kept.turn, kept.byte_seconds)


async def untold(tx: Transaction, limit: int) -> tuple[KeptFor, ...]:
    """Grants that are long over, and that nobody has told of: they cost nothing."""
    rows = await tx.rows(
        "SELECT session, id FROM turns WHERE kept_until IS NOT NULL AND kept_until + $2 <= now_ms() LIMIT $1",
        limit,
        _TOLD_MS,
    )
    return tuple(KeptFor(SessionId(row[0]), TurnId(row[1]), 0) for row in rows)
