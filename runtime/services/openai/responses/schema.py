"""What a request for a response or a conversation may say, field by field: read, or refused by name, never ignored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, model_validator

from runtime.domain.grammar import Grammar
from runtime.domain.sessions import Item
from runtime.domain.settling import settled
from runtime.domain.tools import Toolbox, ToolChoice
from runtime.errors import InvalidArgument
from runtime.ports import Tokenizer
from runtime.services.openai.fields import invalid, only
from runtime.services.openai.grammars import read_response_format
from runtime.services.openai.responses.items import Gathered, Input, Items, Said, Strict, gathered
from runtime.services.openai.responses.tools import ResponseTool, read_tool_choice
from runtime.services.openai.schema import GenerationRequest, Label, Limit, NoList, Nothing
from runtime.services.openai.tools import toolbox_of

MAX_ADDED = 20
_FRAME_CHARS = 32  # what a template writes around a message, about
_CALLED = {
    "max_tokens": "max_output_tokens",
    "prompt": "input",
    "messages": "input",
    "session": "conversation",
    "on_conflict": "conversation",
    "idempotency_key": "idempotency-key",
}


def read_conversation(value: object) -> str | None:
    """An id, or an object that has it."""
    if isinstance(value, dict) and value.keys() == {"id"}:
        value = value["id"]
    if value is not None and not isinstance(value, str):
        raise invalid("must be the id of a conversation, or an object with its id")
    return value


@dataclass(frozen=True, slots=True)
class TextFormat:
    """`told` is how the request wrote it."""

    told: dict[str, Any]
    grammar: Grammar | None


PLAIN_TEXT = TextFormat({"type": "text"}, None)


def read_text_format(value: object) -> TextFormat:
    """As `response_format` of chat completions, but that a schema's fields stand beside the type."""
    if value is None:
        return PLAIN_TEXT
    if not isinstance(value, dict):
        raise invalid("must be an object")
    if value.get("type") != "json_schema":
        return TextFormat(value, read_response_format(value))
    fields = {name: field for name, field in value.items() if name != "type"}
    return TextFormat(value, read_response_format({"type": "json_schema", "json_schema": fields}))


class TextConfig(Strict):
    format: Annotated[TextFormat, PlainValidator(read_text_format)] = PLAIN_TEXT
    verbosity: Annotated[Any, only("medium")] = None


class ResponseRequest(GenerationRequest):
    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: Label | None = None
    conversation: Annotated[str | None, PlainValidator(read_conversation)] = None
    store: bool | None = None
    background: bool | None = None
    max_output_tokens: Limit | None = None
    text: TextConfig | None = None
    metadata: dict[str, str] | None = None

    # They ask for nothing that shows in the answer.
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    truncation: Annotated[Any, only("disabled")] = None
    top_logprobs: Annotated[Any, only(0)] = None

    tools: list[ResponseTool] | None = None
    tool_choice: Annotated[tuple[ToolChoice, str | None] | None, PlainValidator(read_tool_choice)] = None
    parallel_tool_calls: bool | None = None

    max_tool_calls: Nothing = None
    include: NoList = None
    reasoning: Annotated[Any, only({})] = None
    context_management: NoList = None
    prompt: Nothing = None
    prompt_cache_options: Nothing = None
    prompt_cache_retention: Annotated[Any, only("in_memory")] = None
    background_options: Nothing = None
    moderation: Nothing = None
    access_programs: Nothing = None
    image: Nothing = None

    # Of chat completions, where a response has other names for them or none.
    max_tokens: Nothing = None
    n: Annotated[Any, only(1)] = None
    response_format: Nothing = None
    prompt_logprobs: Nothing = None
    priority: Nothing = None

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        assert self.toolbox is not None, "reading it checks it"
        return self

    @cached_property
    def toolbox(self) -> Toolbox:
        """Without tools of its own a response calls none, whatever the one before could call."""
        tools, choice = self.tools or (), self.tool_choice
        if not tools and (choice is None or choice[0] is ToolChoice.AUTO):
            choice = ToolChoice.NONE, None
        strict = any(tool.strict for tool in tools)
        return toolbox_of([tool.tool for tool in tools], choice, self.parallel_tool_calls, strict=strict)

    def _grammars(self) -> list[tuple[str, Grammar]]:
        format_ = PLAIN_TEXT if self.text is None else self.text.format
        named = [] if format_.grammar is None else [("text.format", format_.grammar)]
        return [*named, *super()._grammars()]

    @cached_property
    def said(self) -> Gathered:
        """Raises `InvalidArgument` naming `input`."""
        return gathered(self.input, "input")

    @property
    def items(self) -> tuple[Item, ...]:
        return self.said.items

    @property
    def tokens_asked(self) -> int | None:
        return self.max_output_tokens

    @property
    def logprobs_asked(self) -> int | None:
        return None

    @property
    def text_size(self) -> int:
        offered = sum(len(tool.parameters) + len(tool.description) for tool in self.toolbox.tools)
        return offered + sum(map(_size, self.items)) + len(self.instructions or "")

    def tokenize(self, tokenizer: Tokenizer) -> list[int]:
        first = () if self.instructions is None else (Item("system", self.instructions),)
        messages = [item.message for item in (*first, *settled((), self.items))]
        tools = [tool.for_template for tool in self.toolbox.tools] if self.toolbox.callable else []
        return tokenizer.render_chat(messages, tools)

    def called(self, field: str) -> str:
        if field.startswith("items"):
            return self.said.called(field, "input")
        if field.startswith("limits."):
            return "conversation"
        if field == "grammar" and self.toolbox.tools and not self._grammars():
            return "tools"
        return _CALLED.get(field) or super().called(field)


def _size(item: Item) -> int:
    return _FRAME_CHARS + len(item.content) + sum(len(call.arguments) for call in item.calls)


class ConversationRequest(Strict):
    """`model`, which OpenAI's API does not have, is for a gateway that serves several."""

    items: Items = Field(default_factory=list)
    metadata: dict[str, str] | None = None
    model: Annotated[str, Field(max_length=256)] | None = None


class ConversationChange(Strict):
    metadata: dict[str, str] | None


class ItemsRequest(Strict):
    items: Items


def added(items: Sequence[Said]) -> Gathered:
    """Raises `InvalidArgument` when that is too many at once."""
    if len(items) > MAX_ADDED:
        told = f"items has {len(items)} entries, at most {MAX_ADDED} can be added at a time"
        raise InvalidArgument(told, field="items")
    return gathered(items, "items")
