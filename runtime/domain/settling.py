"""What becomes of the calls of a branch's head: how each is resolved, and what the next turn says of them.

No model is called while one of its calls is open (invariant 9): the next turn has the results of all, or it gives up
those that have none and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from runtime.domain.sessions import Item
from runtime.domain.tools import CallState, Pending, ToolCall, ToolResult, Verdict, denied, given_up
from runtime.errors import FailedPrecondition, InvalidArgument

TOOL = "tool"
_RESOLVED = {
    CallState.ANSWERED: "has its result already",
    CallState.DENIED: "was denied already",
    CallState.TIMED_OUT: "was waited for too long: the model is told that it brought nothing in time",
}


def resolved(pending: Pending, result: ToolResult, field: str) -> Pending:
    """The call after somebody's word. Raises `FailedPrecondition` naming `field` when it comes too late, or too
    early."""
    call = pending.call.id
    if not pending.open:
        raise FailedPrecondition(f"call {call!r} {_RESOLVED[pending.state]}", field=field)
    waits = pending.state is CallState.APPROVAL
    match result.verdict:
        case Verdict.APPROVE if waits:
            return replace(pending, state=CallState.PENDING)
        case Verdict.APPROVE:
            raise FailedPrecondition(f"call {call!r} does not wait for an approval", field=field)
        case Verdict.DENY:
            return replace(pending, state=CallState.DENIED, result=denied(result.text))
        case Verdict.OUTPUT if waits:
            raise FailedPrecondition(f"call {call!r} has to be approved before it has a result", field=field)
        case Verdict.OUTPUT:
            return replace(pending, state=CallState.ANSWERED, result=result.text)


def settled(calls: Sequence[Pending], items: Sequence[Item]) -> tuple[Item, ...]:
    """What the next turn says: of each call of the head, in their order, and then the rest of `items`.

    Raises `FailedPrecondition` naming `items` when a call is open, or the item that comes too late.
    """
    own = _own_calls(items)
    given: dict[str, tuple[int, Item]] = {}
    rest: list[Item] = []
    for number, item in enumerate(items):
        if item.role != TOOL or not item.call:
            rest.append(item)
        elif item.call in own:
            rest.append(replace(item, name=own[item.call].name))
        elif item.call in given:
            _refuse(f"is a second result of call {item.call!r}", number)
        else:
            given[item.call] = number, item
    told = [_told(pending, given.pop(pending.call.id, None), goes_on=bool(rest)) for pending in calls]
    for call, (number, _) in given.items():
        _refuse(f"is for call {call!r}, which does not wait here", number)
    if missing := [pending.call.id for pending, item in zip(calls, told, strict=True) if item is None]:
        raise FailedPrecondition(f"there is no result yet of {', '.join(missing)}", field="items")
    return (*(item for item in told if item is not None), *rest)


def conversation(items: Sequence[Item]) -> list[dict[str, object]]:
    """A whole conversation as chat templates want it. Raises `InvalidArgument` naming in `messages` a result without
    its call, or where the result of a call had to be (invariant 9)."""
    told: list[dict[str, object]] = []
    open_calls: dict[str, str] = {}
    for number, item in enumerate(items):
        if item.role == TOOL and item.call:
            name = open_calls.pop(item.call, None)
            if name is None:
                where = f"messages[{number}].tool_call_id"
                raise InvalidArgument(f"{where} must be of a call before it that has no result", field=where)
            told.append(replace(item, name=name).message)
            continue
        _refuse_open(open_calls, number)
        open_calls = {call.id: call.name for call in item.calls}
        told.append(item.message)
    _refuse_open(open_calls, len(items))
    return told


def _refuse_open(calls: Mapping[str, str], number: int) -> None:
    if calls:
        where = f"messages[{number}]"
        missing = ", ".join(sorted(calls))
        raise InvalidArgument(f"{where} must be the result of a tool call: there is none of {missing}", field=where)


def _told(pending: Pending, given: tuple[int, Item] | None, *, goes_on: bool) -> Item | None:
    """What is said of a call; None when it must be waited for."""
    call = pending.call
    if given is not None:
        number, item = given
        output = ToolResult(call.id, item.content)
        pending = resolved(pending, output, f"items[{number}].tool_call_id")
    if pending.open and not goes_on:
        return None
    return Item(TOOL, given_up() if pending.open else pending.result, call=call.id, name=call.name)


def _own_calls(items: Sequence[Item]) -> dict[str, ToolCall]:
    """The calls that the items themselves make, each with its result among them."""
    calls: dict[str, ToolCall] = {}
    for number, item in enumerate(items):
        calls |= {call.id: call for call in item.calls}
        answered = {other.call for other in items[number + 1 :] if other.role == TOOL}
        missing = [call.id for call in item.calls if call.id not in answered]
        if missing:
            where = f"items[{number}].tool_calls"
            raise InvalidArgument(f"{where} has no result after it for {', '.join(missing)}", field=where)
    return calls


def _refuse(what: str, number: int) -> None:
    where = f"items[{number}].tool_call_id"
    raise FailedPrecondition(f"{where} {what}", field=where)
