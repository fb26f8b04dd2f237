"""What the next turn says of the calls before it, and what becomes of a call after somebody's word."""

import json

import pytest

from runtime.domain.sessions import Item
from runtime.domain.settling import conversation, resolved, settled
from runtime.domain.tools import (
    CallState,
    Pending,
    Tool,
    Toolbox,
    ToolCall,
    ToolChoice,
    ToolResult,
    Verdict,
    check_toolbox,
)
from runtime.errors import FailedPrecondition, InvalidArgument, TooLarge

FIRST, SECOND = ToolCall("c1", "weather", "{}"), ToolCall("c2", "clock", "{}")
OPEN = Pending(FIRST, CallState.PENDING), Pending(SECOND, CallState.PENDING)
USER = Item("user", "Never mind.")


def result(call: str, text: str = "Sunny.") -> Item:
    return Item("tool", text, call=call)


def test_results_are_told_in_the_order_of_the_calls_with_the_names_of_their_tools() -> None:
    told = settled(OPEN, (result("c2", "Noon."), USER, result("c1")))
    assert told == (Item("tool", "Sunny.", (), "c1", "weather"), Item("tool", "Noon.", (), "c2", "clock"), USER)
    stored = Pending(FIRST, CallState.ANSWERED, "Rain."), OPEN[1]
    assert [item.content for item in settled(stored, (result("c2", "Noon."),))] == ["Rain.", "Noon."]


def test_no_model_is_called_while_a_call_is_open_unless_the_user_gives_it_up() -> None:
    """Invariant 9."""
    for items in ((), (result("c1"),)):
        with pytest.raises(FailedPrecondition, match="no result yet of") as refused:
            settled(OPEN, items)
        assert refused.value.field == "items"
    first, second, said = settled(OPEN, (result("c1"), USER))
    assert (first.content, said) == ("Sunny.", USER)
    assert json.loads(second.content)["error"]["code"] == "cancelled"
    assert settled((), ()) == ()


@pytest.mark.parametrize("state", [CallState.ANSWERED, CallState.DENIED, CallState.TIMED_OUT])
def test_a_second_or_a_late_result_is_a_conflict(state: CallState) -> None:
    calls = Pending(FIRST, state, "Rain."), OPEN[1]
    for items in ((result("c1"), USER), (result("c9"), USER), (result("c2"), result("c2"))):
        with pytest.raises(FailedPrecondition) as refused:
            settled(calls, items)
        assert str(refused.value.field).endswith(".tool_call_id")
    with pytest.raises(FailedPrecondition) as late:
        resolved(calls[0], ToolResult("c1", "Sunny."), "results[0].call")
    assert late.value.field == "results[0].call"


def test_somebody_has_to_allow_a_call_before_it_has_a_result() -> None:
    waits = Pending(FIRST, CallState.APPROVAL)
    with pytest.raises(FailedPrecondition, match="has to be approved"):
        settled((waits,), (result("c1"),))
    allowed = resolved(waits, ToolResult("c1", verdict=Verdict.APPROVE), "x")
    assert allowed.state is CallState.PENDING
    denied = resolved(waits, ToolResult("c1", "No.", Verdict.DENY), "x")
    assert (denied.state, json.loads(denied.result)["error"]["message"]) == (CallState.DENIED, "No.")
    with pytest.raises(FailedPrecondition, match="does not wait for an approval"):
        resolved(allowed, ToolResult("c1", verdict=Verdict.APPROVE), "x")


def test_a_history_that_is_brought_along_has_its_own_calls_and_results() -> None:
    calls = Item("assistant", "", (FIRST,))
    assert settled((), (calls, result("c1"), USER))[1].name == "weather"
    with pytest.raises(InvalidArgument) as refused:
        settled((), (calls, USER))
    assert refused.value.field == "items[0].tool_calls"


def test_a_whole_conversation_has_the_result_of_each_call_right_after_it() -> None:
    calls = Item("assistant", "", (FIRST, SECOND))
    told = conversation((USER, calls, result("c2"), result("c1"), USER))
    assert [message.get("name") for message in told] == [None, None, "clock", "weather", None]
    for items, field in (
        ((calls, result("c1"), USER), "messages[2]"),
        ((calls, result("c1")), "messages[2]"),
        ((USER, result("c1")), "messages[1].tool_call_id"),
        ((calls, result("c1"), result("c1")), "messages[2].tool_call_id"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            conversation(items)
        assert refused.value.field == field


def test_tools_are_held_against_their_limits_by_the_name_of_the_field() -> None:
    tool = Tool("f")
    check_toolbox(Toolbox((tool,), ToolChoice.REQUIRED, "f", wait_ms=1))
    for toolbox, field in (
        (Toolbox((Tool("a b"),)), "tools[0].name"),
        (Toolbox((tool, Tool("g", "a\0b"))), "tools[1].description"),
        (Toolbox((Tool("f", "\ud800"),)), "tools[0].description"),
        (Toolbox((Tool("f", "", "[]"),)), "tools[0].parameters"),
        (Toolbox((Tool("f", "", '{"a": NaN}'),)), "tools[0].parameters"),
        (Toolbox((tool, tool)), "tools"),
        (Toolbox(tuple(Tool(f"f{number}") for number in range(129))), "tools"),
        (Toolbox((), ToolChoice.REQUIRED), "tool_choice"),
        (Toolbox((tool,), function="g"), "tool_choice"),
        (Toolbox((tool,), approval_ms=0), "approval_timeout_ms"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            check_toolbox(toolbox)
        assert refused.value.field == field
    with pytest.raises(TooLarge):
        check_toolbox(Toolbox((Tool("f", "x" * 300_000),)))
