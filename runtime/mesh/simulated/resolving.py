"""A simulated user answers the calls of a branch's head, as who runs tools does: perhaps late, twice, or not all."""

from collections.abc import Sequence

from runtime.domain.sessions import Asked, Key
from runtime.domain.tools import CallState, Pending, ToolResult, Verdict
from runtime.ids import SessionId
from runtime.mesh.simulated.fleet import TENANT, Gateway
from runtime.mesh.simulated.talk import Resolve
from runtime.mesh.simulated.world import World
from runtime.roles.submitting import submit

_DEADLINE_S = 20.0


def results(world: World, step: Resolve, calls: Sequence[Pending], who: str) -> tuple[ToolResult, ...]:
    """What is said to calls as they are: to those that wait, and with `again` to the others too."""
    asked = [pending for pending in calls if (pending.open or step.again) and world.chance(step.share)]
    return tuple(_said(world, step, pending, f"{who} on {pending.call.id}") for pending in asked)


def _said(world: World, step: Resolve, pending: Pending, text: str) -> ToolResult:
    call = pending.call.id
    if world.chance(step.denies):
        return ToolResult(call, text, Verdict.DENY)
    if pending.state is CallState.APPROVAL:
        return ToolResult(call, verdict=Verdict.APPROVE)
    return ToolResult(call, text)


async def submitted(
    at: Gateway, session: SessionId, branch: str, step: Resolve, told: tuple[ToolResult, ...], key: Key
) -> None:
    """At a gateway, what its face does."""
    go_on = None if step.go_on is None else Asked((), step.go_on, True, _DEADLINE_S)
    await submit(at.sessions, TENANT, session, branch, told, key, go_on)
