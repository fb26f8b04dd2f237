"""What a request for a response or a conversation may say, field by field: read, or refused by name, never ignored."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, FailFast, Field, PlainValidator

from runtime.domain.grammar import Grammar
from runtime.domain.sessions import Item
from runtime.errors import InvalidArgument
from runtime.ports import Tokenizer
from runtime.services.openai.fields import invalid, only, word
from runtime.services.openai.grammars import read_response_format
from runtime.services.openai.schema import GenerationRequest, Label, Limit, NoList, Nothing

MAX_ADDED = 20
_FRAME_CHARS = 32  # what a template writes around a message, about
_OTHER_PARTS = ("input_image", "input_file", "input_audio", "refusal")
_OTHER_ITEMS = (
    "function_call", "function_call_output", "item_reference", "reasoning", "custom_tool_call",
    "custom_tool_call_output", "compaction", "computer_call", "computer_call_output", "web_search_call",
    "file_search_call", "image_generation_call", "code_interpreter_call", "local_shell_call",
    "local_shell_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
)  # fmt: skip


class Strict(BaseModel):
    model_config = GenerationRequest.model_config


def read_input(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else read_items(value)


def read_items(value: object) -> object:
    return [] if value is None else value


def read_parts(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise invalid("must be a string or a list of text parts")
    return value


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


class Part(Strict):
    type: Annotated[str, word(("input_text", "output_text", "text"), _OTHER_PARTS)]
    text: str
    # An answer's part may come back as it was given.
    annotations: NoList = None
    logprobs: NoList = None
    prompt_cache_breakpoint: Nothing = None


class InputItem(Strict):
    type: Annotated[str, word(("message",), _OTHER_ITEMS)] = "message"
    role: Annotated[str, word(("user", "assistant", "system", "developer"), ())]
    content: Annotated[list[Part], BeforeValidator(read_parts)]
    # An answer's item may come back as it was given.
    id: Label | None = None
    status: Label | None = None
    phase: Annotated[Any, only("commentary", "final_answer")] = None

    def as_item(self) -> Item:
        """Chat templates know the older name of a developer's message."""
        role = "system" if self.role == "developer" else self.role
        return Item(role, "".join(part.text for part in self.content))


Items = Annotated[list[InputItem], FailFast(), BeforeValidator(read_items)]


class ResponseRequest(GenerationRequest):
    input: Annotated[list[InputItem], FailFast(), BeforeValidator(read_input)] = Field(default_factory=list)
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
    parallel_tool_calls: bool | None = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    truncation: Annotated[Any, only("disabled")] = None
    top_logprobs: Annotated[Any, only(0)] = None

    tools: NoList = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
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

    def _grammars(self) -> list[tuple[str, Grammar]]:
        format_ = PLAIN_TEXT if self.text is None else self.text.format
        named = [] if format_.grammar is None else [("text.format", format_.grammar)]
        return [*named, *super()._grammars()]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item.as_item() for item in self.input)

    @property
    def tokens_asked(self) -> int | None:
        return self.max_output_tokens

    @property
    def logprobs_asked(self) -> int | None:
        return None

    @property
    def text_size(self) -> int:
        return sum(_FRAME_CHARS + len(item.content) for item in self.items) + len(self.instructions or "")

    def tokenize(self, tokenizer: Tokenizer) -> list[int]:
        first = () if self.instructions is None else (Item("system", self.instructions),)
        return tokenizer.render_chat([item.message for item in (*first, *self.items)])

    def called(self, field: str) -> str:
        match field:
            case "max_tokens":
                return "max_output_tokens"
            case "prompt" | "messages":
                return "input"
            case _ if field in ("session", "on_conflict") or field.startswith("limits."):
                return "conversation"
            case "idempotency_key":
                return "idempotency-key"
            case _ if field.startswith("items"):
                return field.replace("items", "input", 1)
            case _:
                return super().called(field)


class ConversationRequest(Strict):
    """`model`, which OpenAI's API does not have, is for a gateway that serves several."""

    items: Items = Field(default_factory=list)
    metadata: dict[str, str] | None = None
    model: Annotated[str, Field(max_length=256)] | None = None


class ConversationChange(Strict):
    metadata: dict[str, str] | None


class ItemsRequest(Strict):
    items: Items


def added(items: list[InputItem]) -> tuple[Item, ...]:
    """Raises `InvalidArgument` when that is too many at once."""
    if len(items) > MAX_ADDED:
        told = f"items has {len(items)} entries, at most {MAX_ADDED} can be added at a time"
        raise InvalidArgument(told, field="items")
    return tuple(item.as_item() for item in items)
