"""A lean HTTP/1.1 client for load: one keep-alive connection, one streamed chat completion at a time.

Counts events and takes times; never looks at more of an answer than it must.
"""

import asyncio
import json
import re
import time
from typing import Self
from urllib.parse import urlsplit

import httptools

from runtime.cli.bench.load.caller import Answer
from runtime.errors import BatonError, InvalidArgument, Unavailable

_OK = 200
_TEXT = re.compile(rb'"content": ?"[^"]')
_DONE = b"data: [DONE]"


class HttpCaller(asyncio.Protocol):
    """Speaks to any OpenAI-compatible server; `url` is its root, such as `http://127.0.0.1:8000`."""

    def __init__(self, host: str, path: str, model: str, tokens: int) -> None:
        self._head = f"POST {path}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        self._model = model
        self._tokens = tokens
        self._transport: asyncio.Transport
        self._waiting: asyncio.Future[Answer] | None = None
        self._lost: Exception | None = None

    @classmethod
    async def connect(cls, url: str, model: str, tokens: int) -> Self:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidArgument(f"target must look like http://host:port, got {url!r}", field="target")
        caller = cls(parts.netloc, parts.path.rstrip("/").removesuffix("/v1"), model, tokens)
        loop = asyncio.get_running_loop()
        try:
            caller._transport, _ = await loop.create_connection(lambda: caller, parts.hostname, parts.port or 80)
        except OSError as error:
            raise Unavailable(f"nobody answers at {url}: {error}", field="target") from error
        return caller

    async def call(self, prompt: str) -> Answer:
        """Raises `Unavailable` when the connection or the answer breaks."""
        if self._lost is not None:
            raise Unavailable(f"the connection is gone: {self._lost}")
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self._tokens,
                "temperature": 0,
                "stream": True,
            }
        ).encode()
        self._parser = httptools.HttpResponseParser(self)
        self._events = 0
        self._first = 0.0
        self._tail = b""
        self._waiting = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self._waiting

    async def close(self) -> None:
        self._transport.close()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Unavailable(f"not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = error or ConnectionResetError("the server closed it")
        self._end(Unavailable(f"the connection broke: {self._lost}"))

    # httptools

    def on_body(self, body: bytes) -> None:
        self._events += body.count(b"data: ")
        if not self._first and _TEXT.search(body):
            self._first = time.perf_counter()
        self._tail = (self._tail + body)[-400:]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != _OK:
            self._end(Unavailable(f"HTTP {status}: {self._tail.decode(errors='replace')}"))
        elif _DONE not in self._tail or not self._first:
            self._end(Unavailable(f"an unfinished stream: {self._tail.decode(errors='replace')}"))
        else:
            now = time.perf_counter()
            self._end(Answer(self._first - self._began, now - self._began, self._events))

    def _end(self, outcome: Answer | BatonError) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, Answer):
            waiting.set_result(outcome)
        else:
            waiting.set_exception(outcome)
