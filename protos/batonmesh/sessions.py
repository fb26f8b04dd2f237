"""Sessions for the client that blocks. A turn's stream that breaks goes on, on any gateway that answers."""

import time
from collections.abc import Callable, Iterable, Iterator
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


class TurnStream(Iterator[pb.TurnMessage]):
    """A turn as it becomes durable, up to its end. Leaving it leaves the turn alone, unless `on_disconnect` is cancel.

    When the gateway goes away, the rest is asked for again, for up to `patience` seconds without a message; nothing
    comes twice and nothing is missing.
    """

    def __init__(self, stub: Any, place: Place, patience: float) -> None:  # noqa: ANN401 - typed for asyncio only
        self.place = place
        self._stub = stub
        self._patience = patience
        self._call: Any = None

    def __next__(self) -> pb.TurnMessage:
        gives_up = time.monotonic() + self._patience
        while not self.place.ended:
            try:
                self._call = self._call or self._begin()
                message: pb.TurnMessage = told(lambda: next(self._call))
            except Unavailable:
                self._call = None
                if time.monotonic() > gives_up:
                    raise
                time.sleep(RETRY_S)
                continue
            self.place.read(message)
            return message
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _begin(self) -> Any:  # noqa: ANN401 - as above
        request = self.place.request()
        return self._stub.RunTurn(request) if isinstance(request, pb.RunTurnRequest) else self._stub.ResumeTurn(request)


class Sessions:
    """Conversations that the mesh keeps: `Client.sessions`. What changes something is done once, however often it is
    sent under one key."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata | None = None) -> None:
        """`metadata` goes with every call."""
        # The generated stubs serve both kinds of channel, but are typed for asyncio's.
        stub: Any = session_pb2_grpc.SessionsStub(channel)  # type: ignore[arg-type]
        self._stub = showing(stub, metadata)

    def create(
        self, model: str, *, metadata: dict[str, str] | None = None, rerender: bool = False, key: str | None = None
    ) -> pb.SessionState:
        request = pb.CreateSessionRequest(
            model=model, metadata=metadata, rerender=rerender, idempotency_key=key or fresh_key()
        )
        state: pb.SessionState = told(lambda: self._stub.CreateSession(request))
        return state

    def get(self, session: str) -> pb.SessionState:
        state: pb.SessionState = told(lambda: self._stub.GetSession(pb.GetSessionRequest(session=session)))
        return state

    def newest(self, *, after: str = "", limit: int = 0) -> list[pb.SessionState]:
        """Without their branches."""
        request = pb.ListSessionsRequest(after=after, limit=limit)
        response: pb.ListSessionsResponse = told(lambda: self._stub.ListSessions(request))
        return [*response.sessions]

    def delete(self, session: str) -> None:
        told(lambda: self._stub.DeleteSession(pb.DeleteSessionRequest(session=session)))

    def run(
        self,
        session: str,
        items: Items,
        *,
        turn: TurnOptions | None = None,
        patience: float = PATIENCE_S,
        **options: Unpack[Options],
    ) -> TurnStream:
        """Say something, and stream the answer."""
        request = run_request(session, items, options, turn or {})
        return TurnStream(self._stub, Place(request, session, "", None), patience)

    def complete(
        self,
        session: str,
        items: Items,
        *,
        turn: TurnOptions | None = None,
        patience: float = PATIENCE_S,
        **options: Unpack[Options],
    ) -> TurnAnswer:
        """The whole answer at once."""
        return whole_turn(self.run(session, items, turn=turn, patience=patience, **options))

    def resume(self, session: str, turn: str, *, after: int | None = None, patience: float = PATIENCE_S) -> TurnStream:
        """The rest of a turn after the message with `seq` `after`; all of it when that is None."""
        return TurnStream(self._stub, Place(None, session, turn, after), patience)

    def cancel(self, session: str, turn: str, *, keep: bool = False) -> pb.Turn:
        """Ask that a turn ends; `keep` commits what it has."""
        request = pb.CancelTurnRequest(session=session, turn=turn, keep=keep)
        answer: pb.Turn = told(lambda: self._stub.CancelTurn(request))
        return answer

    def items(self, session: str, *, branch: str = "", after: int = 0, limit: int = 0) -> list[pb.SessionItem]:
        """What was said on a branch, the oldest first."""
        request = pb.ListItemsRequest(session=session, branch=branch, after=after, limit=limit)
        response: pb.ListItemsResponse = told(lambda: self._stub.ListItems(request))
        return [*response.items]

    def calls(self, session: str, *, branch: str = "") -> list[pb.PendingCall]:
        """The calls of a branch's head, and how far each is."""
        request = pb.ListToolCallsRequest(session=session, branch=branch)
        response: pb.ListToolCallsResponse = told(lambda: self._stub.ListToolCalls(request))
        return [*response.calls]

    def resolve(
        self, session: str, results: Results, *, branch: str = "", key: str | None = None
    ) -> list[pb.PendingCall]:
        """Say what calls brought; gives all calls of the head. When none is open any more, `run` goes on."""
        request = results_request(session, branch, results, key or fresh_key())
        response: pb.SubmitToolResultsResponse = told(lambda: self._stub.SubmitToolResults(request))
        return [*response.calls]

    def fork(
        self, session: str, name: str, *, branch: str = "", turn: str | None = None, key: str | None = None
    ) -> pb.Branch:
        """A new branch after `turn` of `branch`, by default after its head."""
        request = pb.ForkRequest(
            session=session, branch=branch, turn=turn, name=name, idempotency_key=key or fresh_key()
        )
        answer: pb.Branch = told(lambda: self._stub.Fork(request))
        return answer

    def rollback(self, session: str, turn: str, *, branch: str = "", key: str | None = None) -> pb.Branch:
        """Move a branch back to `turn`, "" being its beginning."""
        request = pb.RollbackRequest(session=session, branch=branch, turn=turn, idempotency_key=key or fresh_key())
        answer: pb.Branch = told(lambda: self._stub.Rollback(request))
        return answer

    def delete_branch(self, session: str, branch: str) -> None:
        """Forget a branch, and what was said on it and on no other."""
        told(lambda: self._stub.DeleteBranch(pb.DeleteBranchRequest(session=session, branch=branch)))

    def erase(self, session: str) -> pb.EraseResponse:
        """Forget a session everywhere; tells what became of it where it was kept."""
        answer: pb.EraseResponse = told(lambda: self._stub.Erase(pb.EraseRequest(session=session)))
        return answer

    def export(self, session: str) -> Iterator[bytes]:
        """A session as one file, piece by piece."""
        call = self._stub.Export(pb.ExportRequest(session=session))
        while (piece := told(lambda: next(call, None))) is not None:
            yield piece.data

    def import_(self, pieces: Iterable[bytes], *, key: str | None = None) -> pb.SessionState:
        """Take a session in from such a file."""
        state: pb.SessionState = told(lambda: self._stub.Import(import_requests(pieces, key or fresh_key())))
        return state


def told(call: Callable[[], T]) -> T:
    try:
        return call()
    except grpc.RpcError as error:
        metadata: Any = error.trailing_metadata()  # pairs, whatever the stubs of grpc say
        raise from_status(error.code(), error.details(), metadata) from error
