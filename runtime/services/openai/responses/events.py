"""A response as a stream of events, numbered from 0 without a gap: a pure function of what of its turn is durable.

So whoever tells it, and however often, the same number is the same event. All JSON here is ASCII: some clients take
other characters for ends of lines.
"""

import json
from collections.abc import Iterator

from runtime.domain.sessions import Ending, Progress, TurnRecord
from runtime.domain.tools import ToolCall
from runtime.errors import BatonError
from runtime.roles.gateway import GatewayRole
from runtime.services.openai.responses.given import Given
from runtime.services.openai.responses.memo import unpack_memo
from runtime.services.openai.responses.objects import output, response, status_of
from runtime.services.openai.responses.said import Json, answer_id, call, message, part

_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ResponseEvents:
    """`told` is how many events there were so far."""

    def __init__(self, turn: TurnRecord, gateway: GatewayRole) -> None:
        self.told = 0
        self._turn = turn
        self._given = Given(gateway)
        self._calls = 0
        self._where: Json | None = None
        self._before_delta = ""

    def opening(self) -> Iterator[str]:
        background = unpack_memo(self._turn.asked.memo).background
        yield self._event("response.created", response=response(self._turn, "queued" if background else "in_progress"))
        if background:
            yield self._event("response.queued", response=response(self._turn, "queued"))
        yield self._event("response.in_progress", response=response(self._turn, "in_progress"))

    def more(self, progress: Progress) -> Iterator[str]:
        """`progress` follows on what was told."""
        self._turn = progress.turn  # one that waited has begun
        for found in self._given.take(progress):
            yield from self._delta(found) if isinstance(found, str) else self._call(found)
        ending = progress.turn.ending
        if ending is not None:
            yield from self._closing(ending)

    def _delta(self, text: str) -> Iterator[str]:
        yield from self._begin()
        yield _framed("response.output_text.delta", f"{self._before_delta}{_json(text)},{self._numbered()}}}")

    def _begin(self) -> Iterator[str]:
        """The message."""
        if self._where is not None:
            return
        ident, place = answer_id(self._turn), self._given.message_index
        self._where = where = {"item_id": ident, "output_index": place, "content_index": 0}
        self._before_delta = f'{_json({"type": "response.output_text.delta", **where})[:-1]},"logprobs":[],"delta":'
        item = message(ident, None, "in_progress")
        yield self._event("response.output_item.added", output_index=place, item=item)
        yield self._event("response.content_part.added", **where, part=part(""))

    def _call(self, made: ToolCall) -> Iterator[str]:
        """One that is found is whole."""
        number, self._calls = self._calls, self._calls + 1
        ident, place = answer_id(self._turn, number), self._given.call_index(number)
        of, kind = {"item_id": ident, "output_index": place}, "response.function_call_arguments"
        yield self._event("response.output_item.added", output_index=place, item=call(ident, made, "in_progress"))
        yield self._event(f"{kind}.delta", **of, delta=made.arguments)
        yield self._event(f"{kind}.done", **of, name=made.name, arguments=made.arguments)
        yield self._event("response.output_item.done", output_index=place, item=call(ident, made))

    def _closing(self, ending: Ending) -> Iterator[str]:
        status = status_of(self._turn, ending)
        for place, item in enumerate(output(self._turn, self._given, status)):
            if item["type"] == "message":
                yield from self._begin()
                text, where = self._given.text, self._where or {}
                yield self._event("response.output_text.done", **where, text=text, logprobs=[])
                yield self._event("response.content_part.done", **where, part=part(text))
                yield self._event("response.output_item.done", output_index=place, item=item)
        # OpenAI has no event of its own for what was cancelled; the status tells.
        kind = "incomplete" if status == "cancelled" else status
        yield self._event(f"response.{kind}", response=response(self._turn, status, self._given, ending))

    def _event(self, kind: str, **fields: object) -> str:
        told: Json = {"type": kind, **fields}
        return _framed(kind, f"{_json(told)[:-1]},{self._numbered()}}}")

    def _numbered(self) -> str:
        number, self.told = self.told, self.told + 1
        return f'"sequence_number":{number}'


def broken_off(error: BatonError, told: int) -> str:
    """That the stream ends here without the response having ended. It has the number of the event before, so that
    whoever resumes after it misses nothing."""
    body = {"type": "error", "code": error.status.code, "message": error.message, "param": error.field}
    return _framed("error", _json(body | {"sequence_number": max(told - 1, 0)}))


def _framed(kind: str, data: str) -> str:
    return f"event: {kind}\ndata: {data}\n\n"
