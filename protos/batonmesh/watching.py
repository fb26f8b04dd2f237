"""What happens to a session, as it happens. A stream that breaks goes on where it was, on any gateway that answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from batonmesh.errors import Unavailable
from batonmesh.turns import RETRY_S
from batonmesh.v1 import session_pb2 as pb


class _Watched:
    """How far a session was watched; `number` is of the last notice."""

    def __init__(self, stub: Any, told: Callable[[Any], Any], session: str, after: int | None, patience: float) -> None:  # noqa: ANN401 - one of two kinds of stubs
        self.number = after
        self._stub = stub
        self._told = told
        self._session = session
        self._patience = patience
        self._call: Any = None

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _begin(self) -> Any:  # noqa: ANN401 - as above
        return self._stub.WatchSession(pb.WatchSessionRequest(session=self._session, after=self.number))

    def _read(self, notice: pb.SessionNotice) -> pb.SessionNotice:
        self.number = notice.number
        return notice

    def _lost(self, gives_up: float) -> bool:
        """Whether to give up."""
        self._call = None
        return time.monotonic() > gives_up


class Watch(_Watched, Iterator[pb.SessionNotice]):
    """A session as it is and what happens to it, until it is closed."""

    def __next__(self) -> pb.SessionNotice:
        gives_up = time.monotonic() + self._patience
        while True:
            try:
                self._call = self._call or self._begin()
                return self._read(self._told(lambda: next(self._call)))
            except Unavailable:
                if self._lost(gives_up):
                    raise
                time.sleep(RETRY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncWatch(_Watched, AsyncIterator[pb.SessionNotice]):
    """As `Watch`, for asyncio."""

    async def __anext__(self) -> pb.SessionNotice:
        gives_up = time.monotonic() + self._patience
        while True:
            try:
                self._call = self._call or self._begin()
                reading: Awaitable[Any] = self._told(self._call.read())
                notice = await reading
            except Unavailable:
                if self._lost(gives_up):
                    raise
                await asyncio.sleep(RETRY_S)
                continue
            if not isinstance(notice, pb.SessionNotice):
                raise StopAsyncIteration
            return self._read(notice)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
