"""What other transactions do to the calls of a branch's head: they come with a commit, time out, and are inherited.

A call has a row on every line that has its turn as the head: what becomes of it on a fork leaves the parent as it is.
"""

from collections.abc import Sequence

from runtime.domain.sessions import Branch, TurnRecord
from runtime.domain.tools import CallState, Toolbox, ToolCall
from runtime.ids import SessionId, TurnId
from runtime.store.looking import PATH
from runtime.store.packing import pack_call
from runtime.store.sealing import seal_of
from runtime.store.transaction import Transaction


async def add_calls(tx: Transaction, turn: TurnRecord, line: int, calls: Sequence[ToolCall]) -> None:
    """They wait from now on."""
    seal = await seal_of(tx, turn.session)
    rows: list[tuple[object, ...]] = []
    for number, call in enumerate(calls):
        payload = seal.seal(pack_call(call), "calls.payload", line, turn.id, number)
        waiting = _waiting(turn.asked.toolbox, call)
        rows.append((turn.session, line, turn.id, number, call.id, *waiting, payload))
    await tx.run_many(
        "INSERT INTO calls (session, line, turn, number, id, state, wait, deadline, payload)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, now_ms() + $8, $9)",
        rows,
    )


def _waiting(toolbox: Toolbox, call: ToolCall) -> tuple[str, int | None, int | None]:
    """Its state, how long its result will be waited for, and how long it waits now, both in milliseconds."""
    tool = toolbox.tool(call.name)
    if tool is not None and tool.approval:
        return CallState.APPROVAL.value, toolbox.wait_ms, toolbox.approval_ms
    return CallState.PENDING.value, toolbox.wait_ms, toolbox.wait_ms


async def expire(tx: Transaction, session: SessionId, branch: Branch) -> None:
    """Resolve the calls of its head that were waited for too long. They stay so, whatever the clock does."""
    await tx.run(
        "UPDATE calls SET state = $4 WHERE session = $1 AND line = $2 AND turn = $3"
        " AND state IN ('approval', 'pending') AND deadline <= now_ms()",
        session,
        branch.place.line,
        branch.head or "",
        CallState.TIMED_OUT.value,
    )


async def inherit(tx: Transaction, session: SessionId, branch: Branch, head: TurnId | None, line: int) -> None:
    """A new line, whose head is a turn of the branch's history, has that turn's calls as the branch knows them."""
    row = await tx.row(
        f"{PATH} SELECT MAX(c.line) FROM calls c JOIN path p ON p.line = c.line WHERE c.session = $1 AND c.turn = $4",
        session,
        branch.place.line,
        branch.place.depth,
        head or "",
    )
    if row is None or row[0] is None:
        return
    seal, known, turn = await seal_of(tx, session), row[0], head
    rows: list[tuple[object, ...]] = []
    for number, payload, result, *rest in await tx.rows(
        "SELECT number, payload, result, id, state, wait, deadline FROM calls"
        " WHERE session = $1 AND line = $2 AND turn = $3",
        session,
        known,
        turn,
    ):
        sealed = [
            value and seal.seal(seal.open(value, column, known, turn, number), column, line, turn, number)
            for column, value in (("calls.payload", payload), ("calls.result", result))
        ]
        rows.append((session, line, turn, number, *rest, *sealed))
    await tx.run_many(
        "INSERT INTO calls (session, line, turn, number, id, state, wait, deadline, payload, result)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        rows,
    )
