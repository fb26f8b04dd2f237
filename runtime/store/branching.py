"""Transactions on the tree of turns: fork and rollback."""

from runtime.domain.notices import Happening, What
from runtime.domain.sessions import Branch, Key, Place
from runtime.errors import FailedPrecondition, NotFound
from runtime.ids import SessionId, TenantId, TurnId
from runtime.store.accounting import tell
from runtime.store.calls import inherit
from runtime.store.looking import PATH, branch_of, known_result, session_of
from runtime.store.remembering import remember
from runtime.store.transaction import Transaction


async def fork(
    tx: Transaction,
    tenant: TenantId,
    session: SessionId,
    name: str,
    at: TurnId | None,
    fresh: str,
    key: Key | None,
) -> Branch:
    """Two rows and those of the calls at its head, whatever the history (invariant 10)."""
    await session_of(tx, tenant, session, lock=True)
    if key is not None and (known := await known_result(tx, session, key)) is not None:
        return await branch_of(tx, session, known)
    # Locked, or a turn could commit there, and be seen, before a fork that does not know it.
    branch = await branch_of(tx, session, name, lock=True)
    taken = await tx.row("SELECT 1 FROM branches WHERE session = $1 AND name = $2", session, fresh)
    if taken is not None:
        raise FailedPrecondition(f"the session has a branch {fresh!r} already", field="name")
    place, head, tokens = await _turn_at(tx, session, branch, branch.head if at is None else at)
    line = await _new_line(tx, session, place)
    await inherit(tx, session, branch, head, line)
    await tx.run(
        "INSERT INTO branches (session, name, line, depth, head, tokens, epoch) VALUES ($1, $2, $3, $4, $5, $6, 0)",
        session,
        fresh,
        line,
        place.depth,
        head,
        tokens,
    )
    await remember(tx, session, key, fresh)
    await tell(tx, session, Happening(What.FORKED, fresh, head))
    return await branch_of(tx, session, fresh)


async def rollback(
    tx: Transaction, tenant: TenantId, session: SessionId, name: str, to: TurnId | None, key: Key | None
) -> Branch:
    """The epoch grows, so that nothing that was prepared on the old head can be written."""
    await session_of(tx, tenant, session, lock=True)
    branch = await branch_of(tx, session, name, lock=True)
    if key is not None and await known_result(tx, session, key) is not None:
        return branch
    if branch.live is not None:
        raise FailedPrecondition(f"branch {name!r} is busy with turn {branch.live}", field="branch")
    place, head, tokens = await _turn_at(tx, session, branch, to)
    line = await _new_line(tx, session, place)
    await inherit(tx, session, branch, head, line)
    await tx.run(
        "UPDATE branches SET line = $3, depth = $4, head = $5, tokens = $6, epoch = epoch + 1"
        " WHERE session = $1 AND name = $2",
        session,
        name,
        line,
        place.depth,
        head,
        tokens,
    )
    await remember(tx, session, key, name)
    await tell(tx, session, Happening(What.ROLLED_BACK, name, head))
    return await branch_of(tx, session, name)


async def _turn_at(
    tx: Transaction, session: SessionId, branch: Branch, turn: TurnId | None
) -> tuple[Place, TurnId | None, int]:
    """Where a turn of the branch's history is, and its context's tokens; None is the beginning."""
    if turn is None:
        root = await tx.row("SELECT line FROM lines WHERE session = $1 AND parent IS NULL", session)
        assert root is not None, "every session has a first line"
        return Place(root[0], 0), None, 0
    row = await tx.row(
        f"{PATH} SELECT s.line, s.depth, s.total FROM segments s JOIN path p ON p.line = s.line"
        " WHERE s.session = $1 AND s.turn = $4 AND s.depth > p.base AND s.depth <= p.upto",
        session,
        branch.place.line,
        branch.place.depth,
        turn,
    )
    if row is None:
        raise NotFound(f"branch {branch.name!r} has no turn {turn!r} in its history", field="turn")
    return Place(row[0], row[1]), turn, row[2]


async def _new_line(tx: Transaction, session: SessionId, after: Place) -> int:
    row = await tx.row("UPDATE sessions SET lines = lines + 1 WHERE id = $1 RETURNING lines - 1", session)
    assert row is not None
    line: int = row[0]
    await tx.run(
        "INSERT INTO lines (session, line, parent, base) VALUES ($1, $2, $3, $4)",
        session,
        line,
        after.line,
        after.depth,
    )
    return line
