"""Transactions of owners: that they live, and that they take over what a dead one left (invariant 15).

Only the store's clock is read. A lease is for liveness; what an owner may write, its epoch decides.
"""

import logging

from runtime.domain.sessions import Halt, TurnRecord, TurnStatus
from runtime.errors import DataCorrupt, NotFound
from runtime.ids import GatewayId, TurnId
from runtime.store.looking import branch_of, turn_of
from runtime.store.transaction import Transaction

_log = logging.getLogger(__name__)


async def beat(tx: Transaction, owner: GatewayId, lease_s: float) -> dict[TurnId, Halt]:
    await tx.run(
        "INSERT INTO owners (id, expires) VALUES ($1, now_ms() + $2)"
        " ON CONFLICT (id) DO UPDATE SET expires = now_ms() + $2",
        owner,
        round(lease_s * 1000),
    )
    halted = await tx.rows(
        "SELECT id, halt FROM turns WHERE owner = $1 AND status IN ('queued', 'running') AND halt IS NOT NULL", owner
    )
    return {TurnId(row[0]): Halt(row[1]) for row in halted}


async def adopt(tx: Transaction, owner: GatewayId, mine: frozenset[TurnId], limit: int) -> tuple[TurnRecord, ...]:
    left = await tx.rows(
        "SELECT t.id, t.owner, t.epoch FROM turns t WHERE t.status IN ('queued', 'running') AND (t.owner = $1"
        " OR NOT EXISTS (SELECT 1 FROM owners o WHERE o.id = t.owner AND o.expires > now_ms()))"
        " ORDER BY t.status DESC, t.place",
        owner,
    )
    taken: list[TurnRecord] = []
    for ident, left_by, left_at in left:
        if ident in mine:
            continue
        if len(taken) == limit:
            break
        try:
            turn = await turn_of(tx, ident)
            # Else another gateway was quicker.
            if turn is not None and (turn.owner, turn.epoch) == (left_by, left_at):
                taken += await _taken_over(tx, turn, owner)
        except NotFound:
            continue  # deleted, before the lock
        except DataCorrupt as error:
            _log.error("a turn that was left is not taken over: %s", error.message, extra={"turn": ident})
    await tx.run(
        "DELETE FROM owners WHERE expires <= now_ms() AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.owner = owners.id"
        " AND t.status IN ('queued', 'running'))"
    )
    return tuple(taken)


async def _taken_over(tx: Transaction, turn: TurnRecord, owner: GatewayId) -> tuple[TurnRecord, ...]:
    """The turn as it is with its new owner; nothing when another gateway was quicker, before the lock."""
    branch = await branch_of(tx, turn.session, turn.branch, lock=True)
    if turn.status is TurnStatus.RUNNING:
        epoch = branch.epoch + 1
        changed = await tx.run(
            "UPDATE branches SET epoch = $4 WHERE session = $1 AND name = $2 AND live = $3 AND epoch = $5",
            turn.session,
            turn.branch,
            turn.id,
            epoch,
            turn.epoch,
        )
        if changed:
            await tx.run("UPDATE turns SET owner = $2, epoch = $3 WHERE id = $1", turn.id, owner, epoch)
    else:
        changed = await tx.run(
            "UPDATE turns SET owner = $2 WHERE id = $1 AND status = 'queued' AND owner = $3",
            turn.id,
            owner,
            turn.owner,
        )
    adopted = await turn_of(tx, turn.id) if changed else None
    return () if adopted is None else (adopted,)
