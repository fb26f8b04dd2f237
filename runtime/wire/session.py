"""Sessions, branches and turns as messages, and what a request for a turn asks."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batonmesh.v1 import inference_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.sequence import FinishReason
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Branch,
    Ending,
    Item,
    Key,
    OnConflict,
    Progress,
    Session,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
    check_items,
)
from runtime.domain.tools import ToolCall
from runtime.errors import InvalidArgument, NotSupported
from runtime.ids import SessionId, TurnId
from runtime.wire import fields
from runtime.wire.errors import pack_error
from runtime.wire.handoff import pack_handoff
from runtime.wire.sequence import unpack_sampling
from runtime.wire.tools import pack_call, unpack_item, unpack_tools
from runtime.wire.tools import pack_item as pack_message

if TYPE_CHECKING:
    from google.protobuf.message import Message

_MAX_ID = 64
_MAX_KEY = 128
_MAX_PAGE = 1000
_PAGE = 100
# More than any model's context, so that an answer without a bound of its own is bounded by that.
_UNBOUNDED = 2**31 - 1
_STATUS = {
    TurnStatus.QUEUED: pb.TURN_STATUS_QUEUED,
    TurnStatus.RUNNING: pb.TURN_STATUS_RUNNING,
    TurnStatus.COMMITTED: pb.TURN_STATUS_COMMITTED,
    TurnStatus.CANCELLED: pb.TURN_STATUS_CANCELLED,
    TurnStatus.FAILED: pb.TURN_STATUS_FAILED,
}
_STOP = {
    StopReason.END_TURN: pb.STOP_REASON_END_TURN,
    StopReason.LENGTH: pb.STOP_REASON_LENGTH,
    StopReason.INTERRUPTED: pb.STOP_REASON_INTERRUPTED,
    StopReason.TOOL_CALLS: pb.STOP_REASON_TOOL_CALLS,
}
_ON_CONFLICT = {
    pb.ON_CONFLICT_UNSPECIFIED: OnConflict.REJECT,
    pb.ON_CONFLICT_REJECT: OnConflict.REJECT,
    pb.ON_CONFLICT_ENQUEUE: OnConflict.ENQUEUE,
    pb.ON_CONFLICT_INTERRUPT: OnConflict.INTERRUPT,
    pb.ON_CONFLICT_ROLLBACK: OnConflict.ROLLBACK,
}
_ON_DISCONNECT = {
    pb.ON_DISCONNECT_UNSPECIFIED: False,
    pb.ON_DISCONNECT_CONTINUE: False,
    pb.ON_DISCONNECT_CANCEL: True,
}


def unpack_session_id(text: str) -> SessionId:
    return SessionId(_storable(fields.name(text, "session", _MAX_ID), "session"))


def unpack_turn_id(text: str) -> TurnId:
    return TurnId(_storable(fields.name(text, "turn", _MAX_ID), "turn"))


def unpack_branch(text: str, field: str = "branch") -> str:
    """A branch's name; empty is `main`."""
    return _storable(fields.text(text, field, _MAX_ID) or MAIN, field)


def _storable(text: str, field: str) -> str:
    """PostgreSQL's texts have no NUL."""
    if "\0" in text:
        raise InvalidArgument(f"{field} holds a NUL character", field=field)
    return text


def unpack_limit(limit: int) -> int:
    if limit > _MAX_PAGE:
        raise InvalidArgument(f"limit must be at most {_MAX_PAGE}, got {limit}", field="limit")
    return limit or _PAGE


def unpack_key(
    request: pb.CreateSessionRequest
    | pb.RunTurnRequest
    | pb.ForkRequest
    | pb.RollbackRequest
    | pb.SubmitToolResultsRequest,
) -> Key | None:
    """The request's idempotency key, with the digest of everything else that it says."""
    name = fields.text(request.idempotency_key, "idempotency_key", _MAX_KEY)
    if not name:
        return None
    _storable(name, "idempotency_key")
    rest: Message = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("idempotency_key")
    said = type(request).__name__.encode() + rest.SerializeToString(deterministic=True)
    return Key(name, hashlib.blake2b(said, digest_size=16).digest())


def import_key(name: str, bundle: bytes) -> Key | None:
    """The idempotency key of an import of this bundle."""
    fields.text(name, "idempotency_key", _MAX_KEY)
    _storable(name, "idempotency_key")
    return Key(name, hashlib.blake2b(b"ImportRequest" + bundle, digest_size=16).digest()) if name else None


def unpack_asked(request: pb.RunTurnRequest, *, seed: int, deadline_s: float) -> Asked:
    """Raises `InvalidArgument` naming the first field at fault. `bad_words` stay in the message."""
    items = tuple(unpack_item(each) for each in request.items)
    check_items(items)
    sampling = unpack_sampling(request.sampling, max_tokens=_UNBOUNDED, seed=seed)
    if sampling.logprobs is not None:
        raise NotSupported("logprobs are not served for turns of a session", field="logprobs")
    if sampling.prompt_logprobs is not None:
        raise NotSupported("prompt_logprobs are not served for turns of a session", field="prompt_logprobs")
    if request.on_conflict not in _ON_CONFLICT:
        raise InvalidArgument(f"on_conflict has the unknown value {request.on_conflict}", field="on_conflict")
    if request.on_disconnect not in _ON_DISCONNECT:
        raise InvalidArgument(f"on_disconnect has the unknown value {request.on_disconnect}", field="on_disconnect")
    if request.HasField("deadline_ms"):
        deadline_s = min(deadline_s, fields.at_least(1, request.deadline_ms, "deadline_ms") / 1000)
    return Asked(
        items,
        sampling,
        request.sampling.HasField("max_tokens"),
        deadline_s,
        TurnId(request.expected_head) if request.expected_head else None,
        request.HasField("expected_head"),
        _ON_CONFLICT[request.on_conflict],
        _ON_DISCONNECT[request.on_disconnect],
        unpack_tools(request.tools),
    )


def pack_session(session: Session, branches: tuple[Branch, ...] = ()) -> pb.SessionState:
    return pb.SessionState(
        id=session.id,
        model=session.model,
        created_ms=session.created_ms,
        metadata=dict(session.metadata),
        branches=[pack_branch(branch) for branch in branches],
        rerender=session.rerender,
    )


def pack_branch(branch: Branch) -> pb.Branch:
    return pb.Branch(
        name=branch.name,
        head=branch.head,
        turns=branch.place.depth,
        tokens=branch.tokens,
        running=branch.live,
    )


def pack_item(number: int, turn: TurnId, item: Item) -> pb.SessionItem:
    return pb.SessionItem(number=number, turn=turn, message=pack_message(item))


def unpack_stop(reason: int) -> FinishReason:
    """How an answer ended, for those who know no turns; one that was not committed was cancelled."""
    match reason:
        case pb.STOP_REASON_END_TURN | pb.STOP_REASON_TOOL_CALLS:
            return FinishReason.STOP
        case pb.STOP_REASON_LENGTH:
            return FinishReason.LENGTH
        case _:
            return FinishReason.CANCELLED


def pack_turn(record: TurnRecord) -> pb.Turn:
    message = pb.Turn(
        id=record.id,
        session=record.session,
        branch=record.branch,
        status=_STATUS[record.status if record.ending is None else record.ending.status],
        epoch=record.epoch,
    )
    if record.ending is not None:
        message.MergeFrom(_pack_ending(record.ending))
    return message


def opening(record: TurnRecord) -> pb.TurnMessage:
    return pb.TurnMessage(seq=0, opened=pack_turn(record))


def pack_progress(
    progress: Progress, calls: Mapping[int, Sequence[ToolCall]], rest: str, *, after: int
) -> list[pb.TurnMessage]:
    """The messages after the one with `seq` `after`; `progress` has no events before that. `calls` are those that
    became whole with an event, by its `seq`; `rest` is text that comes with the end."""
    messages = [_pack_event(event, calls.get(event.seq, ())) for event in progress.events]
    last = progress.events[-1].seq if progress.events else after
    if progress.turn.ending is not None:
        ended = pack_turn(progress.turn)
        ended.rest = rest
        messages.append(pb.TurnMessage(seq=last + 1, ended=ended))
    return messages


def _pack_event(event: TurnEvent, calls: Sequence[ToolCall]) -> pb.TurnMessage:
    called = [pack_call(call) for call in calls]
    tokens = pb.TurnTokens(index=event.index, ids=event.tokens, text=event.text, tool_calls=called)
    return pb.TurnMessage(seq=event.seq, tokens=tokens)


def _pack_ending(ending: Ending) -> pb.Turn:
    spent = ending.spent
    return pb.Turn(
        stop_reason=pb.STOP_REASON_UNSPECIFIED if ending.stop is None else _STOP[ending.stop],
        error=None if ending.error is None else pack_error(ending.error),
        usage=inference_pb2.Usage(
            prompt_tokens=spent.prompt, cached_tokens=spent.cached, completion_tokens=spent.completion
        ),
        handoff=None if ending.handoff is None else pack_handoff(ending.handoff),
        attempts=ending.attempts,
        drift_tokens=ending.drift,
        tool_calls=[pack_call(call) for call in ending.calls],
    )
