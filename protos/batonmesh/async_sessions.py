"""Sessions for asyncio. A turn's stream that breaks goes on where it was, on any gateway that answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from batonmesh.credentials import Metadata, showing
from batonmesh.errors import Unavailable, from_status
from batonmesh.messages import Options
from batonmesh.turns import (
    PATIENCE_S,
    RETRY_S,
    Items,
    Place,
    Results,
    TurnAnswer,
    TurnOptions,
    fresh_key,
    import_requests,
    results_request,
    run_request,
    whole_turn,
)
from batonmesh.v1 import session_pb2 as pb
from batonmesh.v1 import session_pb2_grpc

T = TypeVar("T")


class AsyncTurnStream(AsyncIterator[pb.TurnMessage]):
    """As `TurnStream`, for asyncio."""

    def __init__(self, stub: session_pb2_grpc.SessionsStub, place: Place, patience: float) -> None:
        self.place = place
        self._stub = stub
        self._patience = patience
        self._call: Any = None

    async def __anext__(self) -> pb.TurnMessage:
        gives_up = time.monotonic() + self._patience
        while not self.place.ended:
            try:
                self._call = self._call or self._begin()
                message = await told(self._call.read())
            except Unavailable:
                self._call = None
                if time.monotonic() > gives_up:
                    raise
                await asyncio.sleep(RETRY_S)
                continue
            if not isinstance(message, pb.TurnMessage):
                break
            self.place.read(message)
            return message
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _begin(self) -> Any:  # noqa: ANN401 - one of two kinds of calls
        request = self.place.request()
        return self._stub.RunTurn(request) if isinstance(request, pb.RunTurnRequest) else self._stub.ResumeTurn(request)


class AsyncSessions:
    """As `Sessions`, for asyncio: `AsyncClient.sessions`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata | None = None) -> None:
        """`metadata` goes with every call."""
        self._stub = showing(session_pb2_grpc.SessionsStub(channel), metadata)

    async def create(
        self, model: str, *, metadata: dict[str, str] | None = None, rerender: bool = False, key: str | None = None
    ) -> pb.SessionState:
        request = pb.CreateSessionRequest(
            model=model, metadata=metadata, rerender=rerender, idempotency_key=key or fresh_key()
        )
        return await told(self._stub.CreateSession(request))

    async def get(self, session: str) -> pb.SessionState:
        return await told(self._stub.GetSession(pb.GetSessionRequest(session=session)))

    async def newest(self, *, after: str = "", limit: int = 0) -> list[pb.SessionState]:
        """Without their branches."""
        response = await told(self._stub.ListSessions(pb.ListSessionsRequest(after=after, limit=limit)))
        return [*response.sessions]

    async def delete(self, session: str) -> None:
        await told(self._stub.DeleteSession(pb.DeleteSessionRequest(session=session)))

    def run(
        self,
        session: str,
        items: Items,
        *,
        turn: TurnOptions | None = None,
        patience: float = PATIENCE_S,
        **options: Unpack[Options],
    ) -> AsyncTurnStream:
        """Say something, and stream the answer."""
        request = run_request(session, items, options, turn or {})
        return AsyncTurnStream(self._stub, Place(request, session, "", None), patience)

    async def complete(
        self,
        session: str,
        items: Items,
        *,
        turn: TurnOptions | None = None,
        patience: float = PATIENCE_S,
        **options: Unpack[Options],
    ) -> TurnAnswer:
        """The whole answer at once."""
        stream = self.run(session, items, turn=turn, patience=patience, **options)
        return whole_turn([message async for message in stream])

    def resume(
        self, session: str, turn: str, *, after: int | None = None, patience: float = PATIENCE_S
    ) -> AsyncTurnStream:
        """The rest of a turn after the message with `seq` `after`; all of it when that is None."""
        return AsyncTurnStream(self._stub, Place(None, session, turn, after), patience)

    async def cancel(self, session: str, turn: str, *, keep: bool = False) -> pb.Turn:
        """Ask that a turn ends; `keep` commits what it has."""
        return await told(self._stub.CancelTurn(pb.CancelTurnRequest(session=session, turn=turn, keep=keep)))

    async def items(self, session: str, *, branch: str = "", after: int = 0, limit: int = 0) -> list[pb.SessionItem]:
        """What was said on a branch, the oldest first."""
        request = pb.ListItemsRequest(session=session, branch=branch, after=after, limit=limit)
        return [*(await told(self._stub.ListItems(request))).items]

    async def calls(self, session: str, *, branch: str = "") -> list[pb.PendingCall]:
        """The calls of a branch's head, and how far each is."""
        request = pb.ListToolCallsRequest(session=session, branch=branch)
        return [*(await told(self._stub.ListToolCalls(request))).calls]

    async def resolve(
        self, session: str, results: Results, *, branch: str = "", key: str | None = None
    ) -> list[pb.PendingCall]:
        """Say what calls brought; gives all calls of the head. When none is open any more, `run` goes on."""
        request = results_request(session, branch, results, key or fresh_key())
        return [*(await told(self._stub.SubmitToolResults(request))).calls]

    async def fork(
        self, session: str, name: str, *, branch: str = "", turn: str | None = None, key: str | None = None
    ) -> pb.Branch:
        """A new branch after `turn` of `branch`, by default after its head."""
        request = pb.ForkRequest(
            session=session, branch=branch, turn=turn, name=name, idempotency_key=key or fresh_key()
        )
        return await told(self._stub.Fork(request))

    async def rollback(self, session: str, turn: str, *, branch: str = "", key: str | None = None) -> pb.Branch:
        """Move a branch back to `turn`, "" being its beginning."""
        request = pb.RollbackRequest(session=session, branch=branch, turn=turn, idempotency_key=key or fresh_key())
        return await told(self._stub.Rollback(request))

    async def delete_branch(self, session: str, branch: str) -> None:
        """Forget a branch, and what was said on it and on no other."""
        await told(self._stub.DeleteBranch(pb.DeleteBranchRequest(session=session, branch=branch)))

    async def erase(self, session: str) -> pb.EraseResponse:
        """Forget a session everywhere; tells what became of it where it was kept."""
        return await told(self._stub.Erase(pb.EraseRequest(session=session)))

    async def export(self, session: str) -> AsyncIterator[bytes]:
        """A session as one file, piece by piece."""
        call = self._stub.Export(pb.ExportRequest(session=session))
        while isinstance(piece := await told(call.read()), pb.ExportResponse):
            yield piece.data

    async def import_(self, pieces: Iterable[bytes], *, key: str | None = None) -> pb.SessionState:
        """Take a session in from such a file."""
        return await told(self._stub.Import(import_requests(pieces, key or fresh_key())))


async def told(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        metadata: Any = error.trailing_metadata()  # pairs, whatever the stubs of grpc say
        raise from_status(error.code(), error.details(), metadata) from error
