"""Errors of a mesh as exceptions. One class a code; what the codes mean is in batonmesh/v1/common.proto.

BatonError
├── InvalidArgument          a field is malformed or out of its range; `field` names it
│   ├── ContextExceeded      prompt and max_tokens exceed the model's context
│   ├── TooLarge             a field has too many bytes
│   └── NotSupported         a field or a value that this mesh does not serve
├── Unauthenticated          no credential, or one that is not known here
├── PermissionDenied         a credential that does not allow this call
├── NotFound                 no such model
├── FailedPrecondition       not now, not in this state
│   └── BudgetSpent          a session has spent what it may; `field` says which of its limits
├── ResourceExhausted        over a limit that passes; `retry_after` says when    retryable
├── Unavailable              nobody serves this now                               retryable
├── DeadlineExceeded         the time given is over
├── Cancelled                the request was withdrawn
├── DataCorrupt              a checksum does not match                            retryable
└── Internal                 the mesh is at fault
    ├── EngineFailed         an engine died                                       retryable
    └── Poison               the request was running whenever an engine died
"""

from collections.abc import Iterable
from typing import ClassVar

import grpc

from batonmesh.v1 import common_pb2


class BatonError(Exception):
    """A request failed. `retryable`: the same request may succeed later; the client itself never repeats one.

    `code` is the mesh's word for it, `field` the request field at fault, `retry_after` seconds to wait, where known.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str, field: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.retry_after = retry_after


class InvalidArgument(BatonError):
    pass


class ContextExceeded(InvalidArgument):
    pass


class TooLarge(InvalidArgument):
    pass


class NotSupported(InvalidArgument):
    pass


class Unauthenticated(BatonError):
    pass


class PermissionDenied(BatonError):
    pass


class NotFound(BatonError):
    pass


class FailedPrecondition(BatonError):
    pass


class BudgetSpent(FailedPrecondition):
    pass


class ResourceExhausted(BatonError):
    retryable = True


class Unavailable(BatonError):
    retryable = True


class DeadlineExceeded(BatonError):
    pass


class Cancelled(BatonError):
    pass


class DataCorrupt(BatonError):
    retryable = True


class Internal(BatonError):
    pass


class EngineFailed(Internal):
    retryable = True


class Poison(Internal):
    pass


_BY_CODE: dict[str, type[BatonError]] = {
    "invalid": InvalidArgument,
    "context": ContextExceeded,
    "too_large": TooLarge,
    "unsupported": NotSupported,
    "unauthenticated": Unauthenticated,
    "denied": PermissionDenied,
    "not_found": NotFound,
    "precondition": FailedPrecondition,
    "budget": BudgetSpent,
    "incompatible": FailedPrecondition,
    "stale": FailedPrecondition,
    "exhausted": ResourceExhausted,
    "unavailable": Unavailable,
    "deadline": DeadlineExceeded,
    "cancelled": Cancelled,
    "corrupt": DataCorrupt,
    "internal": Internal,
    "engine": EngineFailed,
    "poison": Poison,
}
# For errors that come from gRPC itself, or from a newer mesh with codes of its own.
_BY_STATUS = {
    "INVALID_ARGUMENT": "invalid",
    "UNIMPLEMENTED": "unsupported",
    "UNAUTHENTICATED": "unauthenticated",
    "PERMISSION_DENIED": "denied",
    "NOT_FOUND": "not_found",
    "FAILED_PRECONDITION": "precondition",
    "RESOURCE_EXHAUSTED": "exhausted",
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "deadline",
    "CANCELLED": "cancelled",
    "DATA_LOSS": "corrupt",
}


def from_error(error: common_pb2.Error) -> BatonError:
    """The error that a message tells of."""
    kind = _BY_CODE.get(error.code, Internal)
    retry_after = error.retry_after_ms / 1000 if error.HasField("retry_after_ms") else None
    field = error.field if error.HasField("field") else None
    return kind(error.message, code=error.code, field=field, retry_after=retry_after)


def from_status(
    status: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> BatonError:
    """The error of a failed call."""
    told = {key: value for key, value in metadata or () if isinstance(value, str)}
    code = told.get("baton-error-code", "")
    kind = _BY_CODE.get(code) or _BY_CODE[_BY_STATUS.get(status.name, "internal")]
    after = told.get("baton-retry-after-ms", "")
    return kind(
        details or status.name,
        code=code or _BY_STATUS.get(status.name, "internal"),
        field=told.get("baton-error-field"),
        retry_after=int(after) / 1000 if after.isdecimal() else None,
    )
