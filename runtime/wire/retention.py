"""KV that is kept while a session is away, as messages."""

from batonmesh.v1 import retention_pb2 as pb
from runtime.domain.retention import Holding, KeptFor, KeptIn, Pause, Promise, Refusal, Retained, Retention
from runtime.errors import InvalidArgument
from runtime.ids import SessionId, TurnId
from runtime.wire import fields

_MAX_ID = 64
PAUSES = {Pause.TOOLS: pb.PAUSE_TOOLS, Pause.ANSWER: pb.PAUSE_ANSWER}
_PAUSES = {number: pause for pause, number in PAUSES.items()}
KEPT_IN = {KeptIn.POOL: pb.KEPT_IN_POOL}
_KEPT_IN = {number: kept_in for kept_in, number in KEPT_IN.items()}
REFUSALS = {
    Refusal.WORKER_QUOTA: pb.RETENTION_REFUSAL_WORKER_QUOTA,
    Refusal.TENANT_QUOTA: pb.RETENTION_REFUSAL_TENANT_QUOTA,
    Refusal.NO_PAGE: pb.RETENTION_REFUSAL_NO_PAGE,
    Refusal.BUDGET: pb.RETENTION_REFUSAL_BUDGET,
    Refusal.NOT_OFFERED: pb.RETENTION_REFUSAL_NOT_OFFERED,
    Refusal.STOPPED: pb.RETENTION_REFUSAL_STOPPED,
}
_REFUSALS = {number: refusal for refusal, number in REFUSALS.items()}


def pack_retention(retention: Retention) -> pb.Retention:
    return pb.Retention(after_tools_ms=retention.after_tools_ms, after_answer_ms=retention.after_answer_ms)


def unpack_retention(message: pb.Retention, field: str = "retention") -> Retention:
    """Raises `InvalidArgument` naming what of `field` is too long."""
    retention = Retention(message.after_tools_ms, message.after_answer_ms)
    retention.validate(field)
    return retention


def unpack_pause(number: "pb.Pause.ValueType", field: str) -> Pause:
    if number not in _PAUSES:
        raise InvalidArgument(f"{field} has the unknown value {number}", field=field)
    return _PAUSES[number]


def pack_promise(promise: Promise) -> pb.RetentionPromise:
    if promise.refusal is not None:
        return pb.RetentionPromise(refusal=REFUSALS[promise.refusal])
    return pb.RetentionPromise(
        tokens=promise.tokens, keeps=pack_retention(promise.keeps), kept_in=KEPT_IN[promise.kept_in]
    )


def unpack_promise(message: pb.RetentionPromise) -> Promise:
    """A worker that keeps it in a place that is not known here, or refuses for a reason that is not, has not kept it as
    far as this gateway can tell."""
    kept_in = _KEPT_IN.get(message.kept_in)
    if message.refusal or kept_in is None:
        return Promise(refusal=_REFUSALS.get(message.refusal, Refusal.NOT_OFFERED))
    return Promise(message.tokens, unpack_retention(message.keeps, "promise.keeps"), None, kept_in)


def pack_kept(kept: KeptFor) -> pb.KeptFor:
    return pb.KeptFor(session=kept.session, turn=kept.turn, byte_seconds=kept.byte_seconds)


def unpack_kept(message: pb.KeptFor) -> KeptFor:
    return KeptFor(
        SessionId(fields.name(message.session, "kept.session", _MAX_ID)),
        TurnId(fields.name(message.turn, "kept.turn", _MAX_ID)),
        message.byte_seconds,
    )


def pack_retained(retained: Retained) -> pb.Retained:
    pause = PAUSES[retained.pause]
    if retained.refusal is not None:
        return pb.Retained(pause=pause, refusal=REFUSALS[retained.refusal])
    return pb.Retained(
        pause=pause,
        kept_in=KEPT_IN[retained.kept_in],
        tokens=retained.tokens,
        kv_bytes=retained.kv_bytes,
        keep_ms=retained.keep_ms,
    )


def unpack_retained(message: pb.Retained) -> Holding:
    """What of a branch is kept, in a place that this Baton knows."""
    pause = unpack_pause(message.pause, "retained.pause")
    kept_in = _KEPT_IN.get(message.kept_in, KeptIn.POOL)
    return Holding(pause, message.tokens, message.kv_bytes, message.keep_ms, kept_in)


def pack_holding(holding: Holding) -> pb.Retained:
    return pb.Retained(
        pause=PAUSES[holding.pause],
        kept_in=KEPT_IN[holding.kept_in],
        tokens=holding.tokens,
        kv_bytes=holding.kv_bytes,
        keep_ms=holding.remaining_ms,
    )
