"""Transactions of owners: that they live, and that they take over what a dead one left (invariant 15).

Only the store's clock is read. A lease is for liveness; what an owner may write, its epoch decides.
"""

from runtime.domain.sessions import Halt, TurnRecord, TurnStatus
from runtime.errors import NotFound
from runtime.ids import GatewayId, TurnId
from runtime.store.looking import branch_of, turn_of, turns_where
from runtime.store.transaction import Transaction


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
    left = await turns_where(
        tx,
        "t.status IN ('queued', 'running') AND (t.owner = $1"
        " OR NOT EXISTS (SELECT 1 FROM owners o WHERE o.id = t.owner AND o.expires > now_ms()))"
        " ORDER BY t.status DESC, t.place",
        owner,
    )
    taken = []
    for turn in [turn for turn in left if turn.id not in mine][:limit]:
        try:
            branch = await branch_of(tx, turn.session, turn.branch, lock=True)
        except NotFound:
            continue  # deleted, before the lock
        epoch = branch.epoch + 1
        if turn.status is TurnStatus.RUNNING:
            # Another gateway may have been quicker, before the lock.
            changed = await tx.run(
                "UPDATE branches SET epoch = $4 WHERE session = $1 AND name = $2 AND live = $3 AND epoch = $5",
                turn.session,
                turn.branch,
                turn.id,
                epoch,
                turn.epoch,
            )
            if not changed:
                continue
            await tx.run("UPDATE turns SET owner = $2, epoch = $3 WHERE id = $1", turn.id, owner, epoch)
        else:
            changed = await tx.run(
                "UPDATE turns SET owner = $2 WHERE id = $1 AND status = 'queued' AND owner = $3",
                turn.id,
                owner,
                turn.owner,
            )
            if not changed:
                continue
        adopted = await turn_of(tx, turn.id)
        assert adopted is not None
        taken.append(adopted)
    await tx.run(
        "DELETE FROM owners WHERE expires <= now_ms() AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.owner = owners.id"
        " AND t.status IN ('queued', 'running'))"
    )
    return tuple(taken)
