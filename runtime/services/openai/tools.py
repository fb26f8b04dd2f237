"""Tools as chat completions have them: what may be called, what was called, and the messages that tell of it."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from runtime.domain.sessions import Item
from runtime.domain.tools import MAX_CALL_ID, NAME, Tool, Toolbox, ToolCall, ToolChoice, arguments_of, check_toolbox
from runtime.services.openai.fields import invalid, not_supported, only, read_content, word

Label = Annotated[str, Field(min_length=1, max_length=MAX_CALL_ID)]
_ABSENT = object()
_KINDS = word(("function",), ("custom",))


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Function(_Object):
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(_Object):
    type: Annotated[str, _KINDS]
    function: Function

    @property
    def tool(self) -> Tool:
        asked = self.function
        parameters = {"type": "object", "properties": {}} if asked.parameters is None else asked.parameters
        return Tool(asked.name, asked.description or "", json.dumps(parameters, ensure_ascii=False))


def json_object(text: str) -> str:
    if arguments_of(text) is None:
        raise invalid("must be the JSON of an object")
    return text


class CalledFunction(_Object):
    name: Label
    arguments: Annotated[str, AfterValidator(json_object)]


class MessageCall(_Object):
    id: Label
    type: Annotated[str, _KINDS]
    function: CalledFunction

    @property
    def call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


class ContentPart(_Object):
    type: Annotated[str, word(("text",), ("image_url", "input_audio", "file", "refusal", "video_url", "audio_url"))]
    text: str


class Message(_Object):
    role: Annotated[str, word(("system", "developer", "user", "assistant", "tool"), ("function",))]
    name: Annotated[Any, only()] = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: Annotated[Label | None, Field(validate_default=True)] = None
    # An answer's message may come back as it was given.
    function_call: Annotated[Any, only()] = None
    refusal: Annotated[Any, only("")] = None
    audio: Annotated[Any, only()] = None
    annotations: Annotated[Any, only([])] = None
    reasoning: Annotated[Any, only("")] = None
    reasoning_content: Annotated[Any, only("")] = None
    content: list[ContentPart]

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, said: object) -> object:
        return said if not isinstance(said, dict) or "content" in said else {**said, "content": _ABSENT}

    @field_validator("tool_calls", "tool_call_id")
    @classmethod
    def _of_its_role(cls, value: object, info: ValidationInfo) -> object:
        speaker = "tool" if info.field_name == "tool_call_id" else "assistant"
        role = info.data.get("role", speaker)
        if value and role != speaker:
            raise invalid(f"is for messages of role {speaker}")
        if value is None and role == speaker == "tool":
            raise PydanticCustomError("missing", "is required")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _calls_need_no_text(cls, value: object, info: ValidationInfo) -> object:
        if value in (None, _ABSENT) and info.data.get("tool_calls"):
            return []
        if value is _ABSENT:
            raise PydanticCustomError("missing", "is required")
        return read_content(value)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)

    @property
    def size(self) -> int:
        """Characters that a template writes, about."""
        return len(self.text) + sum(len(each.function.arguments) for each in self.tool_calls or ())

    @property
    def item(self) -> Item:
        """Chat templates know the older name of a developer's message."""
        role = "system" if self.role == "developer" else self.role
        return Item(role, self.text, tuple(each.call for each in self.tool_calls or ()), self.tool_call_id or "")


def read_tool_choice(value: object) -> tuple[ToolChoice, str | None]:
    """The choice, and the name of the function if there is only one."""
    if value is None:
        return ToolChoice.AUTO, None
    if isinstance(value, str) and value in tuple(ToolChoice):
        return ToolChoice(value), None
    if isinstance(value, dict) and value.get("type") in ("allowed_tools", "custom"):
        raise not_supported(f"of type {value['type']} is not supported yet")
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid("must be none, auto, required, or a function with its name")
    return ToolChoice.REQUIRED, name


def toolbox_of(
    tools: Sequence[Tool], choice: tuple[ToolChoice, str | None] | None, parallel: bool | None, *, strict: bool
) -> Toolbox:
    """Raises `InvalidArgument` or `TooLarge` naming the field at fault."""
    wanted, function = choice or (ToolChoice.AUTO, None)
    toolbox = Toolbox(tuple(tools), wanted, function, parallel is not False, strict)
    check_toolbox(toolbox)
    return toolbox
