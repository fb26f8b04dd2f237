"""The names of sessions, turns and items in OpenAI's API: the same, under its prefixes.

What cannot be a name is as unknown as one that is not there, and as another tenant's.
"""

import re

from runtime.errors import NotFound
from runtime.ids import SessionId, TurnId

_RESPONSE = re.compile(r"resp_([0-9a-f]{16})")
_CONVERSATION = re.compile(r"conv_([0-9a-f]{16})")
_ITEM = re.compile(r"(?:msg|fc|fco)_([0-9a-f]{16})_([0-9]{1,5})(?:_[0-9]{1,5})?")


def response_id(turn: TurnId) -> str:
    return f"resp_{turn.removeprefix('turn-')}"


def conversation_id(session: SessionId) -> str:
    return f"conv_{session.removeprefix('sess-')}"


def item_id(turn: TurnId, number: int) -> str:
    return f"msg_{turn.removeprefix('turn-')}_{number}"


def call_id(turn: TurnId, number: int, call: int) -> str:
    """Of a call that the item makes."""
    return f"fc_{turn.removeprefix('turn-')}_{number}_{call}"


def result_id(turn: TurnId, number: int) -> str:
    """Of an item that is the result of a call."""
    return f"fco_{turn.removeprefix('turn-')}_{number}"


def turn_named(ident: str, field: str) -> TurnId:
    match = _RESPONSE.fullmatch(ident)
    if match is None:
        raise no_response(field)
    return TurnId(f"turn-{match[1]}")


def session_named(ident: str, field: str) -> SessionId:
    match = _CONVERSATION.fullmatch(ident)
    if match is None:
        raise no_conversation(field)
    return SessionId(f"sess-{match[1]}")


def item_named(ident: str, field: str) -> tuple[TurnId, int]:
    """The turn and the number of what it would be a part of; only that knows whether it is there."""
    match = _ITEM.fullmatch(ident)
    if match is None:
        raise no_item(field)
    return TurnId(f"turn-{match[1]}"), int(match[2])


def no_response(field: str) -> NotFound:
    return NotFound("there is no such response", field=field)


def no_conversation(field: str) -> NotFound:
    return NotFound("there is no such conversation", field=field)


def no_item(field: str) -> NotFound:
    return NotFound("there is no such item", field=field)
