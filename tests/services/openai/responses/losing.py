"""A real proxy between a client and a gateway, that loses answers after the gateway has given them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class LosingProxy:
    """Of the next `losing` answers the client gets nothing, though the gateway has given the whole; of one after them,
    if `cut` says so, the first so many bytes."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname, parts.port
        self.url = ""
        self.losing = 0
        self.cut: int | None = None
        self.tries = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer: the connection closes behind it."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            request = head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + await reader.readexactly(length)
            self.tries += 1
            answer = await self._answer(request)
            if self.losing:
                self.losing -= 1
            elif self.cut is not None:
                writer.write(answer[: self.cut])
                self.cut = None
            else:
                writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
