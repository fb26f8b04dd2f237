"""What other transactions do to the calls of a branch's head: they come with a commit, time out, and are inherited.

A call has a row on every line that has its turn as the head: what becomes of it on a fork leaves the parent as it is.
"""

from collections.abc import Sequence

from runtime.domain.sessions import Branch, TurnRecord
from runtime.domain.tools import CallState, Toolbox, ToolCall, timed_out
from runtime.ids import SessionId, TurnId
from runtime.store.looking import PATH
from runtime.store.packing import pack_call
from runtime.store.transaction import Transaction

_COLUMNS = "session, line, turn, number, id, state, wait, deadline, payload, result"


async def add_calls(tx: Transaction, turn: TurnRecord, line: int, calls: Sequence[ToolCall]) -> None:
    """They wait from now on."""
    rows: list[tuple[object, ...]] = [
        (turn.session, line, turn.id, number, call.id, *_waiting(turn.asked.toolbox, call), pack_call(call))
        for number, call in enumerate(calls)
    ]
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
        "UPDATE calls SET state = $4, result = $5 WHERE session = $1 AND line = $2 AND turn = $3"
        " AND state IN ('approval', 'pending') AND deadline <= now_ms()",
        session,
        branch.place.line,
        branch.head or "",
        CallState.TIMED_OUT.value,
        timed_out().encode(),
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
    if row is not None and row[0] is not None:
        await tx.run(
            f"INSERT INTO calls ({_COLUMNS}) SELECT session, CAST($4 AS INTEGER), turn, number, id, state, wait,"
            " deadline, payload, result FROM calls WHERE session = $1 AND line = $2 AND turn = $3",
            session,
            row[0],
            head,
            line,
        )
