"""Tools and calls as messages. What is sent is held against its limits where it is used."""

from collections.abc import Sequence

from batonmesh.v1 import inference_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.sessions import MAX_ITEM_BYTES, Item
from runtime.domain.tools import (
    MAX_TOOLS,
    CallState,
    Pending,
    Tool,
    Toolbox,
    ToolCall,
    ToolChoice,
    ToolResult,
    Verdict,
    check_results,
)
from runtime.errors import InvalidArgument

_CHOICES = {
    inference_pb2.TOOL_CHOICE_UNSPECIFIED: ToolChoice.AUTO,
    inference_pb2.TOOL_CHOICE_AUTO: ToolChoice.AUTO,
    inference_pb2.TOOL_CHOICE_NONE: ToolChoice.NONE,
    inference_pb2.TOOL_CHOICE_REQUIRED: ToolChoice.REQUIRED,
}
_STATES = {
    CallState.APPROVAL: pb.TOOL_CALL_STATE_APPROVAL,
    CallState.PENDING: pb.TOOL_CALL_STATE_PENDING,
    CallState.ANSWERED: pb.TOOL_CALL_STATE_ANSWERED,
    CallState.DENIED: pb.TOOL_CALL_STATE_DENIED,
    CallState.TIMED_OUT: pb.TOOL_CALL_STATE_TIMED_OUT,
}


def unpack_tools(message: inference_pb2.Tools) -> Toolbox:
    """Raises `InvalidArgument` naming `tool_choice`; `check_toolbox` looks at the rest."""
    if message.choice not in _CHOICES:
        raise InvalidArgument(f"tool_choice has the unknown value {message.choice}", field="tool_choice")
    return Toolbox(
        tuple(_unpack_tool(tool) for tool in message.tools),
        ToolChoice.REQUIRED if message.function else _CHOICES[message.choice],
        message.function or None,
        not message.one_call,
        message.strict,
        message.timeout_ms if message.HasField("timeout_ms") else None,
        message.approval_timeout_ms if message.HasField("approval_timeout_ms") else None,
    )


def _unpack_tool(message: inference_pb2.Tool) -> Tool:
    if not message.parameters:
        return Tool(message.name, message.description, approval=message.needs_approval)
    return Tool(message.name, message.description, message.parameters, message.needs_approval)


def unpack_item(message: inference_pb2.ChatMessage) -> Item:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    return Item(message.role, message.content, calls, message.tool_call_id)


def pack_item(item: Item) -> inference_pb2.ChatMessage:
    calls = [pack_call(call) for call in item.calls]
    return inference_pb2.ChatMessage(role=item.role, content=item.content, tool_calls=calls, tool_call_id=item.call)


def pack_call(call: ToolCall) -> inference_pb2.ToolCall:
    return inference_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)


def pack_pending(pending: Pending) -> pb.PendingCall:
    return pb.PendingCall(
        call=pack_call(pending.call),
        state=_STATES[pending.state],
        result=pending.result,
        remaining_ms=pending.left_ms,
    )


def unpack_results(messages: Sequence[pb.ToolResult]) -> tuple[ToolResult, ...]:
    """Raises `InvalidArgument` or `TooLarge` naming the field at fault."""
    results = tuple(_unpack_result(message, f"results[{number}]") for number, message in enumerate(messages))
    check_results(results, MAX_TOOLS, MAX_ITEM_BYTES)
    return results


def _unpack_result(message: pb.ToolResult, where: str) -> ToolResult:
    match message.WhichOneof("verdict"):
        case "output":
            return ToolResult(message.call, message.output)
        case "approve" if message.approve:
            return ToolResult(message.call, verdict=Verdict.APPROVE)
        case "deny":
            return ToolResult(message.call, message.deny, Verdict.DENY)
        case _:
            raise InvalidArgument(f"{where} needs an output, or to be approved or denied", field=where)
