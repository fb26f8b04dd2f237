"""Errors as they travel: in messages, and as status and trailing metadata of a failed call. Knows no transport."""

from collections.abc import Iterable

from batonmesh.v1 import common_pb2 as pb
from runtime.errors import (
    BatonError,
    Cancelled,
    DataCorrupt,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    NotSupported,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    from_code,
)

CODE_KEY = "baton-error-code"
FIELD_KEY = "baton-error-field"
RETRY_AFTER_KEY = "baton-retry-after-ms"
# Statuses travel in HTTP/2 headers, whose size is limited.
MAX_STATUS_CHARACTERS = 1024
_MAX_MESSAGE = 4096
_MAX_FIELD = 256
_MAX_CODE = 64
# What a status means that does not come from Baton: from gRPC itself, or from something in between.
_FOREIGN: dict[str, type[BatonError]] = {
    kind.status.grpc: kind
    for kind in (
        Cancelled,
        DataCorrupt,
        DeadlineExceeded,
        FailedPrecondition,
        InvalidArgument,
        NotFound,
        NotSupported,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
    )
}


def pack_error(error: BatonError) -> pb.Error:
    return pb.Error(
        code=error.status.code,
        message=error.message[:_MAX_MESSAGE],
        field=_ascii(error.field),
        retry_after_ms=error.retry_after_ms,
    )


def unpack_error(message: pb.Error) -> BatonError:
    return from_code(
        message.code[:_MAX_CODE],
        message.message[:_MAX_MESSAGE],
        field=message.field[:_MAX_FIELD] if message.HasField("field") else None,
        retry_after_ms=message.retry_after_ms if message.HasField("retry_after_ms") else None,
    )


def to_metadata(error: BatonError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that fails with `error`."""
    field = _ascii(error.field)
    pairs = [(CODE_KEY, error.status.code)]
    if field:
        pairs.append((FIELD_KEY, field))
    if error.retry_after_ms is not None:
        pairs.append((RETRY_AFTER_KEY, str(error.retry_after_ms)))
    return tuple(pairs)


def from_status(status: str, details: str, metadata: Iterable[tuple[str, str | bytes]]) -> BatonError:
    """The error of a failed call: its gRPC status by name, its message, and its trailing metadata."""
    told = {key: value for key, value in metadata if isinstance(value, str)}
    code = told.get(CODE_KEY)
    if code is None:
        return _FOREIGN.get(status, Internal)(details)
    after = told.get(RETRY_AFTER_KEY, "")
    return from_code(code, details, field=told.get(FIELD_KEY), retry_after_ms=int(after) if after.isdecimal() else None)


def _ascii(field: str | None) -> str | None:
    if field is None:
        return None
    return "".join(each if " " <= each <= "~" else "?" for each in field[:_MAX_FIELD]).strip()
