"""Conversations by which a chat template is found out: what is in them is in no template."""

from collections.abc import Sequence

Message = dict[str, object]
Tools = Sequence[dict[str, object]]
"""As chat templates take them."""

ASKED = "Qx7WhatIsAskedNext"
NAME, DESCRIPTION, RESULT = "Qx7tool", "Qx7WhatItDoes", "Qx7WhatItBrought"
ARGUMENTS = {"Qx7key": "Qx7value"}
_ID = "Qx7calls1"  # as long as some templates demand
TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": DESCRIPTION,
        "parameters": {"type": "object", "properties": {"Qx7key": {"type": "string"}}, "required": ["Qx7key"]},
    },
}
CALL: dict[str, object] = {"id": _ID, "type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def called(*calls: dict[str, object]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [*calls]}


def result(text: str = RESULT) -> Message:
    return {"role": "tool", "name": NAME, "tool_call_id": _ID, "content": text}
