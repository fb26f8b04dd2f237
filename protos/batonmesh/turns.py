"""What both clients say to sessions and understand of them. Never calls anybody."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from batonmesh.errors import InvalidArgument
from batonmesh.messages import Options, sampling_of
from batonmesh.v1 import inference_pb2, limits_pb2, retention_pb2, session_pb2

Items = str | Sequence[Mapping[str, Any]]
"""What is said: one text of the user, or messages of {"role": ..., "content": ...}; nothing once all calls of the turn
before are resolved."""

TurnMessage = session_pb2.TurnMessage
"""One message of a turn's stream: `opened`, `tokens`, or `ended`."""

PATIENCE_S = 30.0
RETRY_S = 0.2
_PIECE = 256 << 10


class Retention(TypedDict, total=False):
    """For how many seconds KV is to be kept after a turn that called tools, and after one that answered."""

    after_tools: float
    after_answer: float


class TurnOptions(TypedDict, total=False):
    """How a turn is run. `expected_head` is the turn that must be the branch's head, "" its beginning; `deadline`
    seconds bound its generating; `tools` are what it may call; `retention` is asked of its worker. `key` makes the same
    request under it the same turn; by default every call is a turn of its own, and only its own retries are not."""

    branch: str
    expected_head: str
    on_conflict: Literal["reject", "enqueue", "interrupt", "rollback"]
    on_disconnect: Literal["continue", "cancel"]
    deadline: float
    key: str
    tools: inference_pb2.Tools
    retention: Retention


Results = Mapping[str, str] | Iterable[session_pb2.ToolResult]
"""What calls brought, by their ids; or more than that: that somebody allows them, or does not."""


def results_request(session: str, branch: str, results: Results, key: str) -> session_pb2.SubmitToolResultsRequest:
    """Raises `InvalidArgument` for what no request can hold."""
    try:
        said = (
            [session_pb2.ToolResult(call=call, output=output) for call, output in results.items()]
            if isinstance(results, Mapping)
            else results
        )
        return session_pb2.SubmitToolResultsRequest(session=session, branch=branch, results=said, idempotency_key=key)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"results cannot be sent: {error}", code="invalid", field="results") from error


class Policies(TypedDict, total=False):
    """What the turns of a session do that do not say themselves."""

    on_conflict: Literal["reject", "enqueue", "interrupt", "rollback"]
    on_disconnect: Literal["continue", "cancel"]
    retention: Retention


class Limits(TypedDict, total=False):
    """The most that a session may spend; what is not here is not bounded. See batonmesh/v1/limits.proto."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    turns: int
    wall_ms: int
    kv_byte_seconds: int


class Kept(TypedDict, total=False):
    """How a session is kept: `ttl` seconds without anything happening after which it is deleted, 0 for never."""

    metadata: Mapping[str, str]
    ttl: float
    policies: Policies
    limits: Limits


def create_request(model: str, rerender: bool, key: str | None, kept: Kept) -> session_pb2.CreateSessionRequest:
    """Raises `InvalidArgument` for what no request can hold."""
    request = session_pb2.CreateSessionRequest(
        model=model, metadata=kept.get("metadata"), rerender=rerender, idempotency_key=key or fresh_key()
    )
    _keep(request, kept)
    return request


def update_request(session: str, version: int | None, key: str | None, kept: Kept) -> session_pb2.UpdateSessionRequest:
    """Raises `InvalidArgument` for what no request can hold."""
    request = session_pb2.UpdateSessionRequest(
        session=session, expected_version=version, idempotency_key=key or fresh_key()
    )
    if "metadata" in kept:
        request.metadata.CopyFrom(session_pb2.Metadata(pairs=kept["metadata"]))
    _keep(request, kept)
    return request


def _keep(request: session_pb2.CreateSessionRequest | session_pb2.UpdateSessionRequest, kept: Kept) -> None:
    if "policies" in kept:
        told = kept["policies"]
        conflict = _number(session_pb2.OnConflict, "on_conflict", told.get("on_conflict"))
        disconnect = _number(session_pb2.OnDisconnect, "on_disconnect", told.get("on_disconnect"))
        request.policies.CopyFrom(session_pb2.TurnPolicies(on_conflict=conflict, on_disconnect=disconnect))
        if "retention" in told:
            request.policies.retention.CopyFrom(_retention(told["retention"]))
    try:
        if "ttl" in kept:
            request.ttl_ms = round(kept["ttl"] * 1000)
        if "limits" in kept:
            request.limits.CopyFrom(limits_pb2.Limits(**kept["limits"]))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"limits or ttl cannot be sent: {error}", code="invalid", field="limits") from error


def _retention(told: Retention) -> retention_pb2.Retention:
    """Raises `InvalidArgument` for what no request can hold."""
    try:
        tools, answer = round(told.get("after_tools", 0) * 1000), round(told.get("after_answer", 0) * 1000)
        return retention_pb2.Retention(after_tools_ms=tools, after_answer_ms=answer)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"retention cannot be sent: {error}", code="invalid", field="retention") from error


def run_request(session: str, items: Items, options: Options, turn: TurnOptions) -> session_pb2.RunTurnRequest:
    """Raises `InvalidArgument` for what no request can hold."""
    said = [{"role": "user", "content": items}] if isinstance(items, str) else items
    try:
        request = session_pb2.RunTurnRequest(
            session=session,
            branch=turn.get("branch", ""),
            items=[inference_pb2.ChatMessage(**message) for message in said],
            sampling=sampling_of(options),
            idempotency_key=turn.get("key") or fresh_key(),
            tools=turn.get("tools"),
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"items cannot be sent: {error}", code="invalid", field="items") from error
    if "expected_head" in turn:
        request.expected_head = turn["expected_head"]
    if "retention" in turn:
        request.retention.CopyFrom(_retention(turn["retention"]))
    if "deadline" in turn:
        request.deadline_ms = max(round(turn["deadline"] * 1000), 1)
    request.on_conflict = _number(session_pb2.OnConflict, "on_conflict", turn.get("on_conflict"))
    request.on_disconnect = _number(session_pb2.OnDisconnect, "on_disconnect", turn.get("on_disconnect"))
    return request


def import_requests(pieces: Iterable[bytes], key: str) -> Iterator[session_pb2.ImportRequest]:
    """However large the pieces are, the messages are small."""
    yield session_pb2.ImportRequest(idempotency_key=key)
    for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            yield session_pb2.ImportRequest(data=piece[start : start + _PIECE])


def fresh_key() -> str:
    return uuid.uuid4().hex


class Place:
    """How far a turn was read, and so what to ask when its stream breaks."""

    def __init__(self, run: session_pb2.RunTurnRequest | None, session: str, turn: str, after: int | None) -> None:
        self.session = session
        self.turn = turn
        self.after = after
        self.ended = False
        self._run = run

    def request(self) -> session_pb2.RunTurnRequest | session_pb2.ResumeTurnRequest:
        """Until the turn's name is known the same request under the same key; from then on the rest of it."""
        if self._run is not None and not self.turn:
            return self._run
        return session_pb2.ResumeTurnRequest(session=self.session, turn=self.turn, after_seq=self.after)

    def read(self, message: session_pb2.TurnMessage) -> None:
        if message.HasField("opened"):
            self.turn = message.opened.id
        self.after = message.seq
        self.ended = message.HasField("ended")


@dataclass(frozen=True, slots=True)
class TurnAnswer:
    """A whole turn."""

    text: str
    tokens: tuple[int, ...]
    turn: session_pb2.Turn


def whole_turn(messages: Iterable[session_pb2.TurnMessage]) -> TurnAnswer:
    """The answer that these messages are; the last of them tells how it ended."""
    text: list[str] = []
    tokens: list[int] = []
    for message in messages:
        text.append(message.tokens.text)
        tokens.extend(message.tokens.ids)
    assert message.HasField("ended"), "a turn's stream that ends well ends with its ending"
    text.append(message.ended.rest)
    return TurnAnswer("".join(text), tuple(tokens), message.ended)


def _number(kind: Any, name: str, word: str | None) -> Any:  # noqa: ANN401 - one of protobuf's enums
    label = f"{name}_{word or 'unspecified'}".upper()
    try:
        return kind.Value(label)
    except ValueError as error:
        raise InvalidArgument(f"{name} has no value {word!r}", code="invalid", field=name) from error
