"""Tools as responses have them: a function's fields stand beside its type."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from runtime.domain.tools import NAME, Tool, Toolbox, ToolChoice
from runtime.services.openai.fields import invalid, not_supported, only, word

_OTHER_TOOLS = (
    "custom", "web_search", "web_search_preview", "file_search", "computer", "computer_use_preview", "mcp",
    "code_interpreter", "image_generation", "local_shell", "shell", "apply_patch", "namespace", "tool_search",
)  # fmt: skip
_OTHER_CHOICES = ("allowed_tools", *_OTHER_TOOLS)


class ResponseTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    type: Annotated[str, word(("function",), _OTHER_TOOLS)]
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    allowed_callers: Annotated[Any, only(["direct"])] = None
    detached: Annotated[Any, Field(alias="async"), only(False)] = None
    defer_loading: Annotated[Any, only(False)] = None
    output_schema: Annotated[Any, only()] = None

    @property
    def tool(self) -> Tool:
        parameters = {"type": "object", "properties": {}} if self.parameters is None else self.parameters
        return Tool(self.name, self.description or "", json.dumps(parameters, ensure_ascii=False))


def read_tool_choice(value: object) -> tuple[ToolChoice, str | None]:
    """The choice, and the name of the function if there is only one."""
    if value is None:
        return ToolChoice.AUTO, None
    if isinstance(value, str) and value in tuple(ToolChoice):
        return ToolChoice(value), None
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _OTHER_CHOICES:
        raise not_supported(f"of type {kind} is not supported yet")
    name = value.get("name") if isinstance(value, dict) and kind == "function" else None
    if not isinstance(name, str):
        raise invalid("must be none, auto, required, or a function with its name")
    return ToolChoice.REQUIRED, name


def told_tools(toolbox: Toolbox, strict: list[bool] | None) -> dict[str, object]:
    """What a response repeats of the tools that its request named, of which `strict` were so; None: it named none."""
    if strict is None:
        return {"tools": [], "tool_choice": "auto"}
    named = zip(toolbox.tools, strict, strict=True)
    choice: object = toolbox.choice.value
    if toolbox.function is not None:
        choice = {"type": "function", "name": toolbox.function}
    return {"tools": [_told(tool, strict=strictly) for tool, strictly in named], "tool_choice": choice}


def _told(tool: Tool, *, strict: bool) -> dict[str, object]:
    described = tool.description or None
    schema = json.loads(tool.parameters)
    return {"type": "function", "name": tool.name, "description": described, "parameters": schema, "strict": strict}
