"""Results of a head's calls, and the turn that may follow them at once."""

from collections.abc import Sequence
from dataclasses import replace

from runtime.domain.sessions import Asked, Key, TurnRecord
from runtime.domain.tools import Pending, ToolResult
from runtime.errors import BatonError
from runtime.ids import SessionId, TenantId
from runtime.roles.sessions import SessionRole


async def submit(
    role: SessionRole,
    tenant: TenantId,
    session: SessionId,
    branch: str,
    results: Sequence[ToolResult],
    key: Key | None,
    go_on: Asked | None = None,
) -> tuple[tuple[Pending, ...], TurnRecord | None]:
    """Resolve calls of a branch's head; when that leaves none open, run the turn `go_on`. Of all who ask for it each
    gets the same one. The results stand also where that turn is refused."""
    head, calls = await role.store.submit(tenant, session, branch, results, key)
    if go_on is None or any(pending.open for pending in calls):
        return calls, None
    go_on = replace(go_on, expected_head=head, head_is_expected=True)
    once = Key(f"tools/{head}/{branch}", b"")  # a fork at the same head has calls of its own
    try:
        turn, _ = await role.open(tenant, session, branch, go_on, once)
    except BatonError:
        # Somebody else's has gone on, and the branch with it.
        known = await role.store.known(tenant, session, once)
        if known is None:
            raise
        turn = known
    return calls, turn
