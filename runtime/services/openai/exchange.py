"""One HTTP request and its response on an ASGI connection: headers, whole responses, server-sent events, disconnects.

Knows nothing of models or turns.
"""

import re
import uuid
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from runtime.errors import BatonError, InvalidArgument
from runtime.services.openai.body import ClientGone
from runtime.services.openai.errors import error_body, error_headers
from runtime.services.openai.settings import DEADLINE_HEADER

REQUEST_ID_HEADER = "x-request-id"
MAX_DEADLINE_MS = 24 * 3600 * 1000
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def request_id(scope: Scope) -> str:
    """The client's own `x-request-id` where it is fit for a header, else a fresh one; the same whenever asked."""
    known: str | None = scope.get("baton.request_id")
    if known is None:
        sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        known = scope["baton.request_id"] = sent if _REQUEST_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
    return known


def deadline_of(scope: Scope, default_s: float) -> float:
    """Seconds that the request may take, from its header or `default_s`."""
    text = Headers(scope=scope).get(DEADLINE_HEADER)
    if text is None:
        return default_s
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:20]) <= MAX_DEADLINE_MS):
        rule = f"must be whole milliseconds between 1 and {MAX_DEADLINE_MS}"
        raise InvalidArgument(f"{DEADLINE_HEADER} {rule}, got {text[:40]!r}", field=DEADLINE_HEADER)
    return int(text) / 1000


class Exchange:
    """Respond once: `respond`; or `add` events and `flush` them as often as wanted, then `end`; or `fail` at any time.

    The response begins with the first flush: until then a failure has a status of its own. It carries `headers`, also
    when it fails. All raise `ClientGone`.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.headers: dict[str, str] = {}
        self._socket = send
        self._events: list[str] = []
        self._streaming = False

    @property
    def begun(self) -> bool:
        """Whether some of a stream was sent."""
        return self._streaming

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self._start(status, length | dict(headers))
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: BatonError, called: Callable[[str], str] = str) -> None:
        """Tell of an error: by the status, or by an event that ends the stream. `called` gives a field's name in this
        request."""
        body = error_body(error, called(error.field) if error.field else None)
        if self._streaming:
            self.add(f"data: {body.decode()}\n\n")
            await self.end()
        else:
            await self.respond(error.status.http, body, error_headers(error))

    def add(self, events: str) -> None:
        self._events.append(events)

    async def flush(self) -> None:
        """Send what was added; waits while the client does not read."""
        await self._write(more=True)

    async def end(self) -> None:
        """Send what was added; nothing comes after it."""
        await self._write(more=False)

    async def _write(self, *, more: bool) -> None:
        body = "".join(self._events).encode()
        self._events.clear()
        if more and not body:
            return
        if not self._streaming:
            self._streaming = True
            await self._start(200, _STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def until_gone(self) -> None:
        """Raises `ClientGone` when the client closes its connection; ends in no other way."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    async def _send(self, message: Message) -> None:
        try:
            await self._socket(message)
        except OSError as error:
            raise ClientGone from error

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        named = {**headers, **self.headers}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        raw.append((REQUEST_ID_HEADER.encode(), request_id(self.scope).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
