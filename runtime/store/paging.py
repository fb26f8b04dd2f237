"""What was said on a branch, in pages from either end and one by one. Never what a turn said that did not commit."""

from runtime.domain.sessions import Branch, Said
from runtime.errors import NotFound
from runtime.ids import SessionId, TurnId
from runtime.store.looking import PATH, item_from
from runtime.store.sealing import Seal, seal_of
from runtime.store.transaction import Row, Transaction

_SAID = f"""{PATH} SELECT i.turn, i.number, i.payload FROM path p JOIN segments s ON s.session = $1 AND s.line = p.line
    AND s.depth > p.base AND s.depth <= p.upto JOIN items i ON i.turn = s.turn"""


async def page_of(
    tx: Transaction,
    session: SessionId,
    branch: Branch,
    after: tuple[TurnId, int] | None,
    limit: int,
    *,
    newest_first: bool,
) -> tuple[Said, ...]:
    place = branch.place
    order = "DESC" if newest_first else "ASC"
    ordered = f"ORDER BY s.depth {order}, i.number {order} LIMIT $4"
    if after is None:
        rows = await tx.rows(f"{_SAID} {ordered}", session, place.line, place.depth, limit)
    else:
        depth = await _depth_of(tx, session, branch, *after)
        beyond = "<" if newest_first else ">"
        rows = await tx.rows(
            f"{_SAID} WHERE (s.depth, i.number) {beyond} ($5, $6) {ordered}",
            session,
            place.line,
            place.depth,
            limit,
            depth,
            after[1],
        )
    seal = await seal_of(tx, session)
    return tuple(_said(seal, row) for row in rows)


async def item_of(tx: Transaction, session: SessionId, branch: Branch, turn: TurnId, number: int) -> Said:
    """Raises `NotFound`, the same for an item that another branch has."""
    place = branch.place
    row = await tx.row(f"{_SAID} WHERE i.turn = $4 AND i.number = $5", session, place.line, place.depth, turn, number)
    if row is None:
        raise _no_item()
    return _said(await seal_of(tx, session), row)


async def _depth_of(tx: Transaction, session: SessionId, branch: Branch, turn: TurnId, number: int) -> int:
    place = branch.place
    row = await tx.row(
        f"{PATH} SELECT s.depth FROM path p JOIN segments s ON s.session = $1 AND s.line = p.line AND s.depth > p.base"
        " AND s.depth <= p.upto JOIN items i ON i.turn = s.turn WHERE i.turn = $4 AND i.number = $5",
        session,
        place.line,
        place.depth,
        turn,
        number,
    )
    if row is None:
        raise _no_item()
    depth: int = row[0]
    return depth


def _said(seal: Seal, row: Row) -> Said:
    return Said(TurnId(row[0]), row[1], item_from(seal, *row))


def _no_item() -> NotFound:
    return NotFound("there is no such item", field="item")
