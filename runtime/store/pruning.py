"""The transaction that drops a branch, with what no other reaches. What a rollback left goes with its branch."""

from runtime.domain.notices import Happening, What
from runtime.domain.retention import KeptFor
from runtime.domain.sessions import MAIN
from runtime.errors import FailedPrecondition
from runtime.ids import SessionId, TenantId
from runtime.store.accounting import tell
from runtime.store.keeping import book
from runtime.store.looking import branch_of, session_of
from runtime.store.transaction import Transaction

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
    told = await tx.rows("SELECT line, parent, base FROM lines WHERE session = $1", session)
    lines = {line: (parent, base) for line, parent, base in told}
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
    await _delete_turns(tx, session, gone)
    await tx.run_many("DELETE FROM keys WHERE scope = $1 AND result = $2", [(session, each) for each in (name, *gone)])
    used = await tx.rows("SELECT DISTINCT line FROM segments WHERE session = $1", session)
    empty = _unused(lines, {row[0] for row in used} | set(reached))
    for table in ("calls", "lines"):
        await tx.run_many(f"DELETE FROM {table} WHERE session = $1 AND line = $2", [(session, line) for line in empty])
    await tell(tx, session, Happening(What.DROPPED, name, branch.head))


async def _left_without(
    tx: Transaction, session: SessionId, lines: dict[int, tuple[int | None, int]], lost: set[tuple[int, int]]
) -> list[str]:
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


def _reached(lines: dict[int, tuple[int | None, int]], places: list[tuple[int, int]]) -> dict[int, int]:
    """Up to which depth of each line somebody stands on it, of those who stand at `places`."""
    reached: dict[int, int] = {}
    for line, depth in places:
        at: int | None = line
        while at is not None and depth > reached.get(at, -1):
            reached[at] = depth
            parent, base = lines[at]
            at, depth = parent, min(base, depth)
    return reached


def _unused(lines: dict[int, tuple[int | None, int]], used: set[int]) -> set[int]:
    """Lines that hold nothing, and that no line that holds something leaves."""
    needed: set[int] = set()
    for line in used:
        at: int | None = line
        while at is not None and at not in needed:
            needed.add(at)
            at = lines[at][0]
    return set(lines) - needed - {0}
