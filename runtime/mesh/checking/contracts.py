"""Judges what a store says of a session's calls and of its account: what turns were told, and took."""

from collections.abc import Sequence

from runtime.domain.sessions import Place, TurnRecord, TurnStatus
from runtime.domain.settling import TOOL
from runtime.domain.spending import NOTHING, Amounts
from runtime.domain.tools import OPEN, CallState, given_up, timed_out
from runtime.ids import SessionId, TenantId, TurnId
from runtime.mesh.checking.ledger import judge_limits
from runtime.mesh.checking.tables import Violated
from runtime.store.looking import session_of, turn_of
from runtime.store.packing import unpack_reserve
from runtime.store.sealing import seal_of
from runtime.store.transaction import Row, Transaction

_CALLS = "SELECT number, id, state, result FROM calls WHERE session = $1 AND line = $2 AND turn = $3 ORDER BY number"


async def judge_calls(
    tx: Transaction, record: TurnRecord, base: Place, past: Sequence[TurnId], violated: Violated
) -> None:
    """A turn that commits after calls was told of each, once, in their order, and what the store says of it
    (invariant 9)."""
    ending = record.ending
    if not past or ending is None or ending.status is not TurnStatus.COMMITTED:
        return
    calls = await tx.rows(_CALLS, record.session, base.line, past[-1])
    said = [item for item in record.asked.items if item.role == TOOL]
    if [item.call for item in said] != [row[1] for row in calls]:
        violated(9, f"{record.id} is told of the calls {[item.call for item in said]}, its head made others")
        return
    for item, row in zip(said, calls, strict=True):
        expected = await _told_of(tx, record.session, base.line, past[-1], row)
        if item.content != expected:
            violated(9, f"{record.id} is told {item.content!r} of call {row[1]}, and it brought {expected!r}")


async def _told_of(tx: Transaction, session: SessionId, line: int, turn: TurnId, row: Row) -> str:
    number, _, state, result = row
    if CallState(state) in OPEN:
        return given_up()
    if result is None:
        return timed_out()
    return (await seal_of(tx, session)).open(result, "calls.result", line, turn, number).decode()


async def judge_account(
    tx: Transaction, tenant: TenantId, session: SessionId, booked: Amounts, violated: Violated
) -> None:
    """When nothing runs, what is held is what keeping KV may still cost, and what is spent is what turns took, each
    once, and what was `booked` for keeping, within the limits (invariant 12)."""
    account, took, kept = (await session_of(tx, tenant, session)).account, NOTHING, NOTHING
    for ident, held, until in await tx.rows("SELECT id, held, kept_until FROM turns WHERE session = $1", session):
        turn = await turn_of(tx, TurnId(ident))
        if turn is not None and turn.ending is not None:
            took += turn.ending.took
        if until is not None:
            kept += unpack_reserve(held).held
    if account.held != kept:
        violated(12, f"nothing runs, and session {session} holds {account.held}, for KV that is kept {kept}")
    if account.used != took + booked:
        told = f"its turns took {took}, and keeping their KV came to {booked}"
        violated(12, f"session {session} has spent {account.used}, {told}")
    judge_limits(session, account, violated)
