"""The transaction that resolves calls: each once, by whoever locks the branch first (invariant 9)."""

from collections.abc import Sequence

from runtime.domain.notices import Happening, What
from runtime.domain.sessions import Branch, Key
from runtime.domain.settling import resolved
from runtime.domain.tools import OPEN, Pending, ToolResult
from runtime.errors import BatonError, FailedPrecondition, NotFound
from runtime.ids import SessionId, TenantId, TurnId
from runtime.store.accounting import tell
from runtime.store.calls import expire
from runtime.store.looking import branch_of, calls_of, known_result, session_of
from runtime.store.remembering import remember
from runtime.store.sealing import seal_of
from runtime.store.transaction import Transaction


async def submit(
    tx: Transaction,
    tenant: TenantId,
    session: SessionId,
    name: str,
    results: Sequence[ToolResult],
    key: Key | None,
) -> tuple[TurnId, tuple[Pending, ...]]:
    await session_of(tx, tenant, session)
    branch = await branch_of(tx, session, name, lock=True)
    line = branch.place.line
    if key is not None and (known := await known_result(tx, session, key)) is not None:
        return TurnId(known), await calls_of(tx, session, line, TurnId(known))
    if branch.live is not None:
        told = f"branch {name!r} is busy with turn {branch.live}, which waits for no results"
        raise FailedPrecondition(told, field="branch")
    await expire(tx, session, branch)
    calls = await calls_of(tx, session, line, branch.head)
    places = {pending.call.id: place for place, pending in enumerate(calls)}
    for number, result in enumerate(results):
        field = f"results[{number}].call"
        place = places.get(result.call)
        if place is None:
            raise await _refusal(tx, session, result.call, field)
        await _resolve(tx, session, branch, place, resolved(calls[place], result, field))
    assert branch.head is not None, "there are results, and each has its call"
    await remember(tx, session, key, branch.head)
    await tell(tx, session, Happening(What.RESOLVED, name, branch.head))
    return branch.head, await calls_of(tx, session, line, branch.head)


async def _resolve(tx: Transaction, session: SessionId, branch: Branch, number: int, pending: Pending) -> None:
    approved, line = pending.state in OPEN, branch.place.line
    seal = await seal_of(tx, session)
    await tx.run(
        "UPDATE calls SET state = $5, result = $6"
        + (", deadline = now_ms() + wait" if approved else "")
        + " WHERE session = $1 AND line = $2 AND turn = $3 AND number = $4",
        session,
        line,
        branch.head,
        number,
        pending.state.value,
        None if approved else seal.seal(pending.result.encode(), "calls.result", line, branch.head, number),
    )


async def _refusal(tx: Transaction, session: SessionId, call: str, field: str) -> BatonError:
    row = await tx.row("SELECT 1 FROM calls WHERE session = $1 AND id = $2", session, call)
    if row is None:
        return NotFound(f"there is no call {call!r}", field=field)
    return FailedPrecondition(f"call {call!r} is answered too late: the conversation has gone on", field=field)
