"""What a model may call, what it called, and how far a call is: values and their limits. Never runs a tool."""

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.errors import InvalidArgument, TooLarge

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 << 10
MAX_CALL_ID = 64
MAX_WAIT_MS = 30 * 24 * 3600 * 1000
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` is a JSON schema of an object, as JSON. `approval`: somebody has to allow each of its calls."""

    name: str
    description: str = ""
    parameters: str = field(default='{"type": "object", "properties": {}}', repr=False)
    approval: bool = False

    @property
    def schema(self) -> dict[str, object]:
        """What its arguments must match: an object, whether the schema says so or not."""
        schema: dict[str, object] = json.loads(self.parameters)
        return {"type": "object"} | schema

    @property
    def for_template(self) -> dict[str, object]:
        function = {"name": self.name, "description": self.description, "parameters": _read(self.parameters)}
        return {"type": "function", "function": function}


class ToolChoice(enum.StrEnum):
    """Whether the model calls: as it likes, not at all, or at least once."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What an answer may call. With a `function` only that one; `parallel`: more than one call in an answer. `strict`:
    what is called has arguments that match, also where nothing has to be called. A call's result is awaited for
    `wait_ms`, and its approval for `approval_ms`; None is for ever."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    function: str | None = None
    parallel: bool = True
    strict: bool = False
    wait_ms: int | None = None
    approval_ms: int | None = None

    @property
    def callable(self) -> bool:
        """Whether calls are looked for in the answer."""
        return bool(self.tools) and self.choice is not ToolChoice.NONE

    @property
    def called(self) -> tuple[Tool, ...]:
        """Those that the answer may call."""
        return tuple(tool for tool in self.tools if self.function in (None, tool.name))

    def tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)


NO_TOOLS = Toolbox()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is a JSON object, as JSON. `id` is a function of the turn and of the call's number in it."""

    id: str
    name: str
    arguments: str = field(repr=False)

    @property
    def for_template(self) -> dict[str, object]:
        """Templates write the arguments themselves."""
        function = {"name": self.name, "arguments": _read(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class CallState(enum.StrEnum):
    """`approval` waits for somebody's word and then for its result, `pending` for its result; the others are for
    ever."""

    APPROVAL = "approval"
    PENDING = "pending"
    ANSWERED = "answered"
    DENIED = "denied"
    TIMED_OUT = "timed_out"


OPEN = frozenset({CallState.APPROVAL, CallState.PENDING})


@dataclass(frozen=True, slots=True)
class Pending:
    """A call of a branch's head, as it is now. `result` is what the model is told, once it is resolved; `left_ms` how
    long it will still be waited for, None for ever."""

    call: ToolCall
    state: CallState
    result: str = field(default="", repr=False)
    left_ms: int | None = None

    @property
    def open(self) -> bool:
        return self.state in OPEN


class Verdict(enum.StrEnum):
    """What somebody says to a call: what it brought, that it may run, or that it may not."""

    OUTPUT = "output"
    APPROVE = "approve"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`text` is the output, or why it was denied."""

    call: str
    text: str = field(default="", repr=False)
    verdict: Verdict = Verdict.OUTPUT


def denied(reason: str) -> str:
    """What the model is told of a call that somebody did not allow."""
    return _error("denied", reason or "the call was not allowed")


def timed_out() -> str:
    return _error("timed_out", "the call brought no result in time")


def given_up() -> str:
    """Of a call that nobody had answered when the user said something else."""
    return _error("cancelled", "the conversation went on before the call had a result")


def _error(code: str, message: str) -> str:
    return json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)


def check_toolbox(toolbox: Toolbox) -> None:
    """Raise `InvalidArgument` or `TooLarge` naming the field at fault."""
    tools = toolbox.tools
    if len(tools) > MAX_TOOLS:
        raise InvalidArgument(f"tools has {len(tools)} entries, at most {MAX_TOOLS} are allowed", field="tools")
    for number, tool in enumerate(tools):
        _check_tool(tool, f"tools[{number}]")
    _check_choice(toolbox, [tool.name for tool in tools])
    size = sum(len(tool.parameters) + len(tool.description) for tool in tools)
    if size > MAX_TOOLS_BYTES:
        raise TooLarge(f"tools have {size} characters, the limit is {MAX_TOOLS_BYTES}", field="tools")
    for name, limit in (("tool_timeout_ms", toolbox.wait_ms), ("approval_timeout_ms", toolbox.approval_ms)):
        if limit is not None and not 1 <= limit <= MAX_WAIT_MS:
            raise InvalidArgument(f"{name} must be between 1 and {MAX_WAIT_MS}, got {limit}", field=name)


def _check_choice(toolbox: Toolbox, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise InvalidArgument("tools has two of one name", field="tools")
    if not names and toolbox.choice is ToolChoice.REQUIRED:
        raise InvalidArgument("tool_choice asks for a call, and there are no tools", field="tool_choice")
    if toolbox.function not in (None, *names):
        raise InvalidArgument(f"tool_choice names {toolbox.function!r}, which is not in tools", field="tool_choice")


def _check_tool(tool: Tool, where: str) -> None:
    if not NAME.fullmatch(tool.name):
        rule = "must have 1 to 64 letters, digits, dots, _ and -"
        raise InvalidArgument(f"{where}.name {rule}", field=f"{where}.name")
    if "\0" in tool.description:
        raise InvalidArgument(f"{where}.description holds a NUL character", field=f"{where}.description")
    if arguments_of(tool.parameters) is None:
        raise InvalidArgument(f"{where}.parameters must be a JSON object", field=f"{where}.parameters")
    for text, name in ((tool.description, "description"), (tool.parameters, "parameters")):
        if not is_unicode(text):
            raise InvalidArgument(f"{where}.{name} is not valid Unicode", field=f"{where}.{name}")


def arguments_of(text: str, *, strict: bool = True) -> dict[str, object] | None:
    """A JSON object with finite numbers; None for anything else. Models write line breaks into texts, which is allowed
    unless `strict`."""
    try:
        value = json.loads(text, strict=strict, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def written(arguments: dict[str, object]) -> str:
    """As JSON; characters stand for themselves, but halves of them."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(arguments)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_results(results: Sequence[ToolResult], limit: int, most_bytes: int) -> None:
    """Raise `InvalidArgument` or `TooLarge` naming the field at fault."""
    if not 1 <= len(results) <= limit:
        raise InvalidArgument(f"results has {len(results)} entries, 1 to {limit} are allowed", field="results")
    seen: set[str] = set()
    for number, result in enumerate(results):
        where = f"results[{number}]"
        if not 1 <= len(result.call) <= MAX_CALL_ID or "\0" in result.call:
            rule = f"must have 1 to {MAX_CALL_ID} characters and no NUL"
            raise InvalidArgument(f"{where}.call {rule}", field=f"{where}.call")
        if result.call in seen:
            raise InvalidArgument(f"results has two for call {result.call!r}", field=f"{where}.call")
        seen.add(result.call)
        if not is_unicode(result.text) or "\0" in result.text:
            raise InvalidArgument(f"{where} is not valid Unicode, or holds a NUL character", field=where)
        if len(result.text.encode()) > most_bytes:
            raise TooLarge(f"{where} is larger than {most_bytes} bytes", field=where)


def _read(text: str) -> object:
    """JSON for a template: half a character, which JSON can spell out and no tokenizer takes, is replaced."""
    value: object = json.loads(text)
    if "\\u" in text:
        halves = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        value = json.loads(halves.decode("utf-16", "replace"))
    return value


def _refuse(constant: str) -> object:
    raise ValueError(constant)
