"""What a response repeats of its request, kept with its turn. Nothing that the turn itself has."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from runtime.errors import DataCorrupt
from runtime.services.openai.responses.schema import PLAIN_TEXT, ResponseRequest


@dataclass(frozen=True, slots=True)
class Memo:
    """`created` is unix seconds, 0 where the turn was asked for in another way. `conversation`: it belongs to one, and
    not to a session of its own. `strict`: which of the tools that it named are strict; None where it named none."""

    created: int = 0
    conversation: bool = True
    previous: str | None = None
    background: bool = False
    stored: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=lambda: PLAIN_TEXT.told)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool = True
    strict: list[bool] | None = None

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def memo_of(asked: ResponseRequest, created: int) -> Memo:
    return Memo(
        created,
        asked.conversation is not None,
        asked.previous_response_id,
        bool(asked.background),
        asked.store is not False,
        asked.metadata or {},
        PLAIN_TEXT.told if asked.text is None else asked.text.format.told,
        asked.user,
        asked.safety_identifier,
        asked.prompt_cache_key,
        asked.parallel_tool_calls is not False,
        [bool(tool.strict) for tool in asked.tools] if asked.tools else None,
    )


def unpack_memo(packed: bytes) -> Memo:
    """A field that only a newer Baton knows is left out. Raises `DataCorrupt`."""
    try:
        told = json.loads(packed) if packed else {}
        return Memo(**{name: value for name, value in told.items() if name in Memo.__dataclass_fields__})
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataCorrupt("what the response's request said cannot be read") from error
