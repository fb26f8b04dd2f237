"""Transactions that drop what nobody reaches any more: a branch and what is on no other, forgotten responses.

What a rollback left goes with its branch.
"""

from runtime.domain.notices import Happening, What
from runtime.domain.retention import KeptFor
from runtime.domain.sessions import MAIN
from runtime.errors import FailedPrecondition
from runtime.ids import SessionId, TenantId
from runtime.store.accounting import tell
from runtime.store.keeping import book
from runtime.store.looking import PATH, branch_of, session_of
from runtime.store.transaction import Transaction

Lines = dict[int, tuple[int | None, int]]
"""Of each line the one that it leaves, and after how many turns."""

_OF_A_TURN = ("segments", "items", "events", "calls")


async def drop_branch(tx: Transaction, tenant: TenantId, session: SessionId, name: str) -> None:
    """Raises `FailedPrecondition` naming `branch` for `main`, and for one with turns that have not ended."""
    await session_of(tx, tenant, session, lock=True)
    branch = await branch_of(tx, session, name, lock=True)
    if name == MAIN:
        raise FailedPrecondition(f"every session has a branch {MAIN!r}", field="branch")
    waiting = await tx.row(
        "SELECT id FROM turns WHERE session = $1 AND branch = $2 AND status = 'queued'", session, name
    )
    if branch.live is not None or waiting is not None:
        raise FailedPrecondition(f"branch {name!r} has a turn that has not ended", field="branch")
    await tx.run("DELETE FROM branches WHERE session = $1 AND name = $2", session, name)
    lines = await _lines_of(tx, session)
    left = await tx.rows("SELECT line, depth FROM branches WHERE session = $1", session)
    reached = _reached(lines, [(row[0], row[1]) for row in left])
    said = await tx.rows(
        "SELECT t.id, s.line, s.depth FROM turns t LEFT JOIN segments s ON s.session = t.session AND s.turn = t.id"
        " WHERE t.session = $1 AND NOT EXISTS (SELECT 1 FROM branches b WHERE b.session = $1 AND b.name = t.branch)",
        session,
    )
    lost = {(line, depth) for _, line, depth in said if line is not None and depth > reached.get(line, -1)}
    gone = [turn for turn, line, depth in said if line is None or (line, depth) in lost]
    gone += await _left_without(tx, session, lines, lost)
    await _let_go(tx, session, lines, set(reached), [name], gone)
    await tell(tx, session, Happening(What.DROPPED, name, branch.head))


async def prune(tx: Transaction, session: SessionId) -> bool:
    """Drop the turns of a hidden session that are no responses any more and on which none stands; says whether there
    were some. Its branches go back to what is left of them. They are locked."""
    lines = await _lines_of(tx, session)
    needed = await tx.rows(
        "SELECT s.line, s.depth FROM turns t JOIN segments s ON s.session = t.session AND s.turn = t.id"
        " WHERE t.session = $1 AND t.hidden = 0 UNION SELECT b.line, b.depth FROM branches b WHERE b.session = $1"
        " AND (b.live IS NOT NULL OR (b.name = $2 AND b.line > 0) OR EXISTS (SELECT 1 FROM turns t"
        " WHERE t.session = $1 AND t.branch = b.name AND t.status = 'queued'))",
        session,
        MAIN,
    )
    reached = {0: 0} | _reached(lines, [(row[0], row[1]) for row in needed])
    said = await tx.rows(
        "SELECT t.id, s.line, s.depth FROM turns t LEFT JOIN segments s ON s.session = t.session AND s.turn = t.id"
        " WHERE t.session = $1 AND t.hidden = 1 AND t.status NOT IN ('queued', 'running')",
        session,
    )
    gone = [turn for turn, line, depth in said if line is None or depth > reached.get(line, -1)]
    if not gone:
        return False
    dropped: list[str] = []
    for name, line, depth in await tx.rows("SELECT name, line, depth FROM branches WHERE session = $1", session):
        if line not in reached:
            dropped.append(name)
        elif depth > reached[line]:
            await _go_back(tx, session, name, line, reached[line])
    await tx.run_many("DELETE FROM branches WHERE session = $1 AND name = $2", [(session, name) for name in dropped])
    await _let_go(tx, session, lines, set(reached), dropped, gone)
    return True


async def _go_back(tx: Transaction, session: SessionId, name: str, line: int, depth: int) -> None:
    row = await tx.row(
        f"{PATH} SELECT s.turn, s.total FROM path p JOIN segments s ON s.session = $1 AND s.line = p.line"
        " AND s.depth > p.base AND s.depth <= p.upto ORDER BY s.depth DESC LIMIT 1",
        session,
        line,
        depth,
    )
    head, tokens = (None, 0) if row is None else tuple(row)
    await tx.run(
        "UPDATE branches SET depth = $3, head = $4, tokens = $5, epoch = epoch + 1 WHERE session = $1 AND name = $2",
        session,
        name,
        depth,
        head,
        tokens,
    )


async def _lines_of(tx: Transaction, session: SessionId) -> Lines:
    told = await tx.rows("SELECT line, parent, base FROM lines WHERE session = $1", session)
    return {line: (parent, base) for line, parent, base in told}


async def _let_go(
    tx: Transaction, session: SessionId, lines: Lines, reached: set[int], names: list[str], turns: list[str]
) -> None:
    """Delete turns and what was remembered of them and of branches of these names, and lines that are empty then."""
    await _delete_turns(tx, session, turns)
    await tx.run_many("DELETE FROM keys WHERE scope = $1 AND result = $2", [(session, each) for each in names + turns])
    used = await tx.rows("SELECT DISTINCT line FROM segments WHERE session = $1", session)
    empty = _unused(lines, {row[0] for row in used} | reached)
    for table in ("calls", "lines"):
        await tx.run_many(f"DELETE FROM {table} WHERE session = $1 AND line = $2", [(session, line) for line in empty])


async def _left_without(tx: Transaction, session: SessionId, lines: Lines, lost: set[tuple[int, int]]) -> list[str]:
    """Turns of other branches that a rollback left, and that stand on what is lost."""
    without: set[int] = set()
    # A line is younger than the one that it leaves.
    for line in sorted(lines):
        parent, base = lines[line]
        while parent is not None and base <= lines[parent][1]:
            parent = lines[parent][0]
        if parent is not None and (parent in without or (parent, base) in lost):
            without.add(line)
    found = await tx.rows("SELECT turn, line FROM segments WHERE session = $1", session)
    return [turn for turn, line in found if line in without]


async def _delete_turns(tx: Transaction, session: SessionId, turns: list[str]) -> None:
    kept = await tx.rows("SELECT id FROM turns WHERE session = $1 AND kept_until IS NOT NULL", session)
    for turn in {row[0] for row in kept}.intersection(turns):
        await book(tx, KeptFor(session, turn, 0))
    rows: list[tuple[object, ...]] = [(session, turn) for turn in turns]
    for table in _OF_A_TURN:
        await tx.run_many(f"DELETE FROM {table} WHERE session = $1 AND turn = $2", rows)
    await tx.run_many("DELETE FROM turns WHERE session = $1 AND id = $2", rows)


def _reached(lines: Lines, places: list[tuple[int, int]]) -> dict[int, int]:
    """Up to which depth of each line somebody stands on it, of those who stand at `places`."""
    reached: dict[int, int] = {}
    for line, depth in places:
        at: int | None = line
        while at is not None and depth > reached.get(at, -1):
            reached[at] = depth
            parent, base = lines[at]
            at, depth = parent, min(base, depth)
    return reached


def _unused(lines: Lines, used: set[int]) -> set[int]:
    """Lines that hold nothing, and that no line that holds something leaves."""
    needed: set[int] = set()
    for line in used:
        at: int | None = line
        while at is not None and at not in needed:
            needed.add(at)
            at = lines[at][0]
    return set(lines) - needed - {0}
