"""What may be said to a response or a conversation: messages, calls and their results, as OpenAI writes them.

There each call is an item of its own; here the calls of one answer go with its text, as chat templates want them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, PlainValidator

from runtime.domain.sessions import MAX_ITEMS, Item
from runtime.domain.settling import TOOL
from runtime.domain.tools import MAX_CALL_ID, NAME, ToolCall
from runtime.errors import InvalidArgument
from runtime.services.openai.fields import invalid, only, word
from runtime.services.openai.tools import json_object

_KINDS = ("message", "function_call", "function_call_output")
_OTHER_KINDS = (
    "item_reference", "reasoning", "custom_tool_call", "custom_tool_call_output", "compaction", "computer_call",
    "computer_call_output", "web_search_call", "file_search_call", "image_generation_call", "code_interpreter_call",
    "local_shell_call", "local_shell_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response",
    "mcp_call",
)  # fmt: skip
_OTHER_PARTS = ("input_image", "input_file", "input_audio", "refusal")
Label = Annotated[str, Field(max_length=512)]
CallId = Annotated[str, Field(max_length=MAX_CALL_ID, pattern=r"^[^\x00]+$")]
Nothing = Annotated[Any, only()]
NoList = Annotated[Any, only([])]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _read_parts(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise invalid("must be a string or a list of text parts")
    return value


class Part(Strict):
    type: Annotated[str, word(("input_text", "output_text", "text"), _OTHER_PARTS)]
    text: str
    # An answer's part may come back as it was given.
    annotations: NoList = None
    logprobs: NoList = None
    prompt_cache_breakpoint: Nothing = None


Parts = Annotated[list[Part], BeforeValidator(_read_parts)]


class _Said(Strict):
    type: Annotated[str, word(_KINDS, _OTHER_KINDS)] = "message"
    # An item may come back as it was given.
    id: Label | None = None
    status: Label | None = None


class SaidMessage(_Said):
    role: Annotated[str, word(("user", "assistant", "system", "developer"), ())]
    content: Parts
    phase: Annotated[Any, only("commentary", "final_answer")] = None

    @property
    def item(self) -> Item:
        """Chat templates know the older name of a developer's message."""
        role = "system" if self.role == "developer" else self.role
        return Item(role, "".join(part.text for part in self.content))


class _OfCall(_Said):
    call_id: CallId
    caller: Annotated[Any, only({"type": "direct"})] = None
    namespace: Nothing = None


class SaidCall(_OfCall):
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    arguments: Annotated[str, AfterValidator(json_object)]
    detached: Annotated[Any, Field(alias="async"), only(False)] = None

    @property
    def item(self) -> Item:
        return Item("assistant", "", (ToolCall(self.call_id, self.name, self.arguments),))


class SaidResult(_OfCall):
    output: Parts
    name: Nothing = None

    @property
    def item(self) -> Item:
        return Item(TOOL, "".join(part.text for part in self.output), call=self.call_id)


_CLASSES: dict[str, type[SaidMessage] | type[SaidCall] | type[SaidResult]] = {
    "message": SaidMessage,
    "function_call": SaidCall,
    "function_call_output": SaidResult,
}
Said = SaidMessage | SaidCall | SaidResult


def _read_item(value: object) -> Said:
    """By its type; without one it is a message."""
    kind = value.get("type") if isinstance(value, dict) else None
    return _CLASSES.get(kind if isinstance(kind, str) else "message", SaidMessage).model_validate(value)


def _read_items(value: object) -> object:
    return [] if value is None else value


def _read_input(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else _read_items(value)


_Each = list[Annotated[Said, PlainValidator(_read_item)]]
Items = Annotated[_Each, FailFast(), BeforeValidator(_read_items)]
Input = Annotated[_Each, FailFast(), BeforeValidator(_read_input)]


@dataclass(frozen=True, slots=True)
class Gathered:
    """`places` says of each of the `items` where in the request it begins."""

    items: tuple[Item, ...]
    places: tuple[int, ...]

    def called(self, field: str, name: str) -> str:
        """What a request calls the field `items[N]...`, whose list is its `name`."""
        number, _, rest = field.removeprefix("items[").partition("]")
        if not number.isdecimal() or int(number) >= len(self.items):
            return field.replace("items", name, 1)
        item = self.items[int(number)]
        match rest:
            case ".tool_call_id":
                rest = ".call_id"
            case ".tool_calls":
                rest = ""
            case ".content" if item.call:
                rest = ".output"
        return f"{name}[{self.places[int(number)]}]{rest}"


def gathered(said: Sequence[Said], name: str) -> Gathered:
    """Raises `InvalidArgument` naming `name`, the list, when that is too many."""
    if len(said) > MAX_ITEMS:
        raise InvalidArgument(f"{name} has {len(said)} entries, at most {MAX_ITEMS} are allowed", field=name)
    items: list[Item] = []
    places: list[int] = []
    for place, each in enumerate(said):
        item = each.item
        if items and (joined := _joined(items[-1], item)) is not None:
            items[-1] = joined
        else:
            items.append(item)
            places.append(place)
    return Gathered(tuple(items), tuple(places))


def _joined(before: Item, item: Item) -> Item | None:
    """Both as one answer, if they can be that: its text, once, and its calls."""
    if before.role != "assistant" or item.role != "assistant":
        return None
    if item.calls:
        return replace(before, calls=before.calls + item.calls)
    return replace(before, content=item.content) if before.calls and not before.content else None
