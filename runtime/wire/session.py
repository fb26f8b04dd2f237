"""Sessions, branches and turns as messages, and what a request for a turn asks."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batonmesh.v1 import inference_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.retention import Holding
from runtime.domain.reuse import Missed, Sources
from runtime.domain.sequence import FinishReason
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Branch,
    Ending,
    Item,
    Key,
    OnConflict,
    Policies,
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
from runtime.wire.limits import pack_amounts, pack_limits
from runtime.wire.retention import pack_holding, pack_retained, pack_retention, unpack_retained, unpack_retention
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
STATUS = {
    TurnStatus.QUEUED: pb.TURN_STATUS_QUEUED,
    TurnStatus.RUNNING: pb.TURN_STATUS_RUNNING,
    TurnStatus.COMMITTED: pb.TURN_STATUS_COMMITTED,
    TurnStatus.CANCELLED: pb.TURN_STATUS_CANCELLED,
    TurnStatus.FAILED: pb.TURN_STATUS_FAILED,
}
STOP = {
    StopReason.END_TURN: pb.STOP_REASON_END_TURN,
    StopReason.LENGTH: pb.STOP_REASON_LENGTH,
    StopReason.INTERRUPTED: pb.STOP_REASON_INTERRUPTED,
    StopReason.TOOL_CALLS: pb.STOP_REASON_TOOL_CALLS,
    StopReason.BUDGET: pb.STOP_REASON_BUDGET,
}
_MISSED = {
    Missed.NEVER_STORED: pb.MISS_REASON_NEVER_STORED,
    Missed.DRIFT: pb.MISS_REASON_DRIFT,
    Missed.MODEL_CHANGED: pb.MISS_REASON_MODEL_CHANGED,
    Missed.BRANCH_COLD: pb.MISS_REASON_BRANCH_COLD,
    Missed.EVICTED: pb.MISS_REASON_EVICTED,
}
ON_CONFLICT = {
    OnConflict.REJECT: pb.ON_CONFLICT_REJECT,
    OnConflict.ENQUEUE: pb.ON_CONFLICT_ENQUEUE,
    OnConflict.INTERRUPT: pb.ON_CONFLICT_INTERRUPT,
    OnConflict.ROLLBACK: pb.ON_CONFLICT_ROLLBACK,
}
_CONFLICTS = {pb.ON_CONFLICT_UNSPECIFIED: None} | {number: policy for policy, number in ON_CONFLICT.items()}
ON_DISCONNECT = {False: pb.ON_DISCONNECT_CONTINUE, True: pb.ON_DISCONNECT_CANCEL}
_DISCONNECTS = {pb.ON_DISCONNECT_UNSPECIFIED: None} | {number: cancel for cancel, number in ON_DISCONNECT.items()}


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
    | pb.SubmitToolResultsRequest
    | pb.UpdateSessionRequest,
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
    if request.HasField("deadline_ms"):
        deadline_s = min(deadline_s, fields.at_least(1, request.deadline_ms, "deadline_ms") / 1000)
    return Asked(
        items,
        sampling,
        request.sampling.HasField("max_tokens"),
        deadline_s,
        TurnId(request.expected_head) if request.expected_head else None,
        request.HasField("expected_head"),
        unpack_on_conflict(request.on_conflict, "on_conflict"),
        unpack_on_disconnect(request.on_disconnect, "on_disconnect"),
        unpack_tools(request.tools),
        retention=unpack_retention(request.retention) if request.HasField("retention") else None,
    )


def unpack_on_conflict(number: "pb.OnConflict.ValueType", field: str) -> OnConflict | None:
    """None where it is not said. Raises `InvalidArgument`."""
    if number not in _CONFLICTS:
        raise InvalidArgument(f"{field} has the unknown value {number}", field=field)
    return _CONFLICTS[number]


def unpack_on_disconnect(number: "pb.OnDisconnect.ValueType", field: str) -> bool | None:
    """Whether to cancel; None where it is not said. Raises `InvalidArgument`."""
    if number not in _DISCONNECTS:
        raise InvalidArgument(f"{field} has the unknown value {number}", field=field)
    return _DISCONNECTS[number]


def unpack_policies(message: pb.TurnPolicies) -> Policies:
    defaults = Policies()
    conflict = unpack_on_conflict(message.on_conflict, "policies.on_conflict")
    cancel = unpack_on_disconnect(message.on_disconnect, "policies.on_disconnect")
    return Policies(
        defaults.on_conflict if conflict is None else conflict,
        defaults.cancel_unwatched if cancel is None else cancel,
        unpack_retention(message.retention, "policies.retention"),
    )


def pack_policies(policies: Policies) -> pb.TurnPolicies:
    return pb.TurnPolicies(
        on_conflict=ON_CONFLICT[policies.on_conflict],
        on_disconnect=ON_DISCONNECT[policies.cancel_unwatched],
        retention=pack_retention(policies.retention) if policies.retention else None,
    )


def pack_session(session: Session, branches: tuple[Branch, ...] = ()) -> pb.SessionState:
    account = session.account
    return pb.SessionState(
        id=session.id,
        model=session.model,
        created_ms=session.created_ms,
        metadata=dict(session.metadata),
        branches=[pack_branch(branch) for branch in branches],
        rerender=session.rerender,
        version=account.version,
        ttl_ms=account.ttl_ms,
        expires_in_ms=None if account.expires_in_ms is None else max(account.expires_in_ms, 0),
        policies=pack_policies(session.policies),
        notices=account.notices,
        limits=pack_limits(account.limits),
        used=pack_amounts(account.used),
        reserved=pack_amounts(account.held),
    )


def pack_branch(branch: Branch) -> pb.Branch:
    return pb.Branch(
        name=branch.name,
        head=branch.head,
        turns=branch.place.depth,
        tokens=branch.tokens,
        running=branch.live,
        retained=None if branch.holding is None else pack_holding(branch.holding),
    )


def unpack_holding(message: pb.Branch) -> Holding | None:
    """What a gateway tells to be kept of a branch's KV."""
    return unpack_retained(message.retained) if message.HasField("retained") else None


def pack_item(number: int, turn: TurnId, item: Item) -> pb.SessionItem:
    return pb.SessionItem(number=number, turn=turn, message=pack_message(item))


def unpack_stop(reason: int) -> FinishReason:
    """How an answer ended, for those who know no turns; one that was not committed was cancelled."""
    match reason:
        case pb.STOP_REASON_END_TURN | pb.STOP_REASON_TOOL_CALLS:
            return FinishReason.STOP
        case pb.STOP_REASON_LENGTH | pb.STOP_REASON_BUDGET:
            return FinishReason.LENGTH
        case _:
            return FinishReason.CANCELLED


def pack_turn(record: TurnRecord) -> pb.Turn:
    message = pb.Turn(
        id=record.id,
        session=record.session,
        branch=record.branch,
        status=STATUS[record.status if record.ending is None else record.ending.status],
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
        stop_reason=pb.STOP_REASON_UNSPECIFIED if ending.stop is None else STOP[ending.stop],
        error=None if ending.error is None else pack_error(ending.error),
        usage=inference_pb2.Usage(
            prompt_tokens=spent.prompt, cached_tokens=spent.cached, completion_tokens=spent.completion
        ),
        handoff=None if ending.handoff is None else pack_handoff(ending.handoff),
        attempts=ending.attempts,
        drift_tokens=ending.drift,
        tool_calls=[pack_call(call) for call in ending.calls],
        limit=ending.limit or "",
        sources=None if ending.sources is None else _pack_sources(ending.sources),
        spent=pack_amounts(ending.took),
        retained=None if ending.retained is None else pack_retained(ending.retained),
    )


def _pack_sources(sources: Sources) -> pb.PromptSources:
    return pb.PromptSources(
        pool=sources.pool,
        handed_over=sources.handed_over,
        computed=sources.computed,
        missed=sources.missed,
        reason=pb.MISS_REASON_UNSPECIFIED if sources.why is None else _MISSED[sources.why],
    )
