"""The JSON of what was said, item by item, as OpenAI documents it: each call is an item of its own."""

from collections.abc import Sequence
from typing import Any

from runtime.domain.sessions import Item, Said, TurnRecord
from runtime.domain.tools import ToolCall
from runtime.ids import TurnId
from runtime.services.openai.responses.ids import call_id, item_id, result_id

Json = dict[str, Any]


def answer_id(turn: TurnRecord, call: int | None = None) -> str:
    """Of the answer's message, or of one of its calls. The answer comes after what was asked."""
    number = len(turn.asked.items)
    return item_id(turn.id, number) if call is None else call_id(turn.id, number, call)


def message(ident: str, text: str | None, status: str) -> Json:
    """An answer's message; without a part while there is no `text` yet."""
    content = [] if text is None else [part(text)]
    return {"id": ident, "type": "message", "role": "assistant", "status": status, "content": content}


def part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call(ident: str, made: ToolCall, status: str = "completed") -> Json:
    """One that has only begun has no arguments yet."""
    arguments = made.arguments if status == "completed" else ""
    told = {"call_id": made.id, "name": made.name, "arguments": arguments}
    return {"id": ident, "type": "function_call", **told, "status": status}


def parts(turn: TurnId, number: int, said: Item) -> list[Json]:
    """The items of one that is there for ever: a message before the calls that it makes."""
    if said.call:
        told = {"call_id": said.call, "output": said.content, "status": "completed"}
        return [{"id": result_id(turn, number), "type": "function_call_output", **told}]
    calls = [call(call_id(turn, number, place), made) for place, made in enumerate(said.calls)]
    if calls and not said.content:
        return calls
    ident = item_id(turn, number)
    if said.role == "assistant":
        return [message(ident, said.content, "completed"), *calls]
    content = {"type": "input_text", "text": said.content}
    return [{"id": ident, "type": "message", "role": said.role, "status": "completed", "content": [content]}, *calls]


def parts_of(said: Sequence[Said], *, newest_first: bool) -> list[Json]:
    told: list[Json] = []
    for each in said:
        own = parts(each.turn, each.number, each.item)
        told += own[::-1] if newest_first else own
    return told


def beyond(told: list[Json], ident: str) -> list[Json] | None:
    """Those behind the one that is named, None where there is none."""
    place = next((place for place, each in enumerate(told) if each["id"] == ident), None)
    return None if place is None else told[place + 1 :]


def listed(told: Sequence[Json], limit: int) -> Json:
    """The first of them, with whether there are more."""
    shown = told[:limit]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": list(shown), "first_id": first, "last_id": last, "has_more": len(told) > limit}
