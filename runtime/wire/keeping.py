"""What a session is to be, and what happened to it, as messages."""

from batonmesh.v1 import session_pb2 as pb
from runtime.domain.notices import Change, Notice, What
from runtime.domain.sessions import MAX_TTL_MS, Policies, check_metadata
from runtime.domain.spending import Account
from runtime.errors import InvalidArgument
from runtime.wire.limits import unpack_amounts, unpack_limits
from runtime.wire.session import STATUS, STOP, unpack_policies


def unpack_change(request: pb.UpdateSessionRequest) -> Change:
    """Raises `InvalidArgument` naming the first field at fault."""
    metadata = dict(request.metadata.pairs) if request.HasField("metadata") else None
    check_metadata(metadata or {})
    change = Change(
        request.expected_version if request.HasField("expected_version") else None,
        metadata,
        _unpack_ttl(request.ttl_ms) if request.HasField("ttl_ms") else None,
        unpack_policies(request.policies) if request.HasField("policies") else None,
        unpack_limits(request.limits) if request.HasField("limits") else None,
    )
    if (change.metadata, change.ttl_ms, change.policies, change.limits) == (None, None, None, None):
        raise InvalidArgument("an update changes metadata, ttl_ms, policies or limits", field="metadata")
    return change


def unpack_account(request: pb.CreateSessionRequest) -> Account:
    return Account(unpack_limits(request.limits), ttl_ms=_unpack_ttl(request.ttl_ms) or None)


def unpack_state(message: pb.SessionState) -> tuple[Account, Policies]:
    """How a session is kept, as its gateway tells it."""
    account = Account(
        unpack_limits(message.limits),
        unpack_amounts(message.used),
        unpack_amounts(message.reserved),
        message.version,
        message.notices,
        message.ttl_ms if message.HasField("ttl_ms") else None,
        message.expires_in_ms if message.HasField("expires_in_ms") else None,
    )
    return account, unpack_policies(message.policies)


def _unpack_ttl(ttl_ms: int) -> int:
    if ttl_ms > MAX_TTL_MS:
        raise InvalidArgument(f"ttl_ms must be at most {MAX_TTL_MS}, got {ttl_ms}", field="ttl_ms")
    return ttl_ms


def pack_notice(notice: Notice) -> pb.SessionNotice:
    message = pb.SessionNotice(number=notice.number, at_ms=notice.at_ms)
    told = notice.happening
    # The fields are called as what happens.
    match told.what:
        case What.UPDATED:
            message.updated = told.version
        case What.OPENED | What.BEGUN | What.ENDED:
            getattr(message, told.what).CopyFrom(_pack_turn(notice))
        case _:
            getattr(message, told.what).CopyFrom(pb.BranchNotice(branch=told.branch, head=told.turn))
    return message


def _pack_turn(notice: Notice) -> pb.TurnNotice:
    told = notice.happening
    return pb.TurnNotice(
        turn=told.turn or "",
        branch=told.branch,
        status=pb.TURN_STATUS_UNSPECIFIED if told.status is None else STATUS[told.status],
        stop_reason=pb.STOP_REASON_UNSPECIFIED if told.stop is None else STOP[told.stop],
    )
