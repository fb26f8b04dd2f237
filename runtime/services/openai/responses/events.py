"""A response as a stream of events, numbered from 0 without a gap: a pure function of what of its turn is durable.

So whoever tells it, and however often, the same number is the same event. All JSON here is ASCII: some clients take
other characters for ends of lines.
"""

import json
from collections.abc import Iterable, Iterator

from runtime.domain.sessions import Ending, Progress, TurnRecord
from runtime.errors import BatonError
from runtime.services.openai.responses.memo import unpack_memo
from runtime.services.openai.responses.objects import Json, answer_id, message, output, part, response, status_of

_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ResponseEvents:
    """`told` is how many events there were so far, `text` all of the answer."""

    def __init__(self, turn: TurnRecord) -> None:
        self.told = 0
        self.text = ""
        self._turn = turn
        self._begun = False
        where = {"item_id": answer_id(turn), "output_index": 0, "content_index": 0}
        self._where = where
        self._before_delta = f'{_json({"type": "response.output_text.delta", **where})[:-1]},"logprobs":[],"delta":'

    def opening(self) -> Iterator[str]:
        background = unpack_memo(self._turn.asked.memo).background
        yield self._event("response.created", response=response(self._turn, "queued" if background else "in_progress"))
        if background:
            yield self._event("response.queued", response=response(self._turn, "queued"))
        yield self._event("response.in_progress", response=response(self._turn, "in_progress"))

    def more(self, progress: Progress) -> Iterator[str]:
        """`progress` follows on what was told."""
        yield from self._deltas(event.text for event in progress.events)
        ending = progress.turn.ending
        if ending is not None:
            yield from self._closing(ending)

    def _deltas(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if not text:
                continue
            yield from self._begin()
            self.text += text
            yield _framed("response.output_text.delta", f"{self._before_delta}{_json(text)},{self._numbered()}}}")

    def _begin(self) -> Iterator[str]:
        if not self._begun:
            self._begun = True
            item = message(self._turn, None, "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **self._where, part=part(""))

    def _closing(self, ending: Ending) -> Iterator[str]:
        status = status_of(self._turn, ending)
        for item in output(self._turn, self.text, status):
            yield from self._begin()
            yield self._event("response.output_text.done", **self._where, text=self.text, logprobs=[])
            yield self._event("response.content_part.done", **self._where, part=part(self.text))
            yield self._event("response.output_item.done", output_index=0, item=item)
        # OpenAI has no event of its own for what was cancelled; the status tells.
        kind = "incomplete" if status == "cancelled" else status
        yield self._event(f"response.{kind}", response=response(self._turn, status, self.text, ending))

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
