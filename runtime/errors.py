"""Every error that may leave Baton, with its gRPC and HTTP status. Owns the taxonomy; never formats a response.

    BatonError                       code       gRPC                 HTTP  retryable
    ├── InvalidArgument              invalid    INVALID_ARGUMENT     400   no
    │   ├── ContextExceeded          context    INVALID_ARGUMENT     400   no
    │   └── NotSupported             unsupported UNIMPLEMENTED       400   no
    ├── Unauthenticated              unauthenticated UNAUTHENTICATED 401   no
    ├── PermissionDenied             denied     PERMISSION_DENIED    403   no
    ├── NotFound                     not_found  NOT_FOUND            404   no
    ├── TooLarge                     too_large  INVALID_ARGUMENT     413   no
    ├── FailedPrecondition           precondition FAILED_PRECONDITION 409  no
    │   ├── BudgetSpent              budget     FAILED_PRECONDITION  409   no
    │   ├── Incompatible             incompatible FAILED_PRECONDITION 409  no
    │   └── StaleAttempt             stale      FAILED_PRECONDITION  409   no
    ├── ResourceExhausted            exhausted  RESOURCE_EXHAUSTED   429   yes
    ├── Unavailable                  unavailable UNAVAILABLE         503   yes
    ├── DeadlineExceeded             deadline   DEADLINE_EXCEEDED    504   no
    ├── Cancelled                    cancelled  CANCELLED            499   no
    ├── DataCorrupt                  corrupt    DATA_LOSS            500   yes
    └── Internal                     internal   INTERNAL             500   no
        ├── EngineFailed             engine     INTERNAL             500   yes
        └── Poison                   poison     INTERNAL             500   no
    SetupError                       never reaches a client: a command line or a worker start fails with it
    ├── ConfigError                  a field of the configuration
    ├── ModelError                   a checkpoint or a tokenizer
    └── StartError                   a port, a process, a machine

`IllegalTransition` and `InvariantViolation` are our own bugs: they are not BatonErrors, so nothing turns them into
a polite answer by accident.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Status:
    """How an error looks outside: the name of a gRPC status code and an HTTP status."""

    code: str
    grpc: str
    http: int
    retryable: bool


class BatonError(Exception):
    """An error with a status. `field` names the request or configuration field at fault, where there is one."""

    status: ClassVar[Status] = Status("internal", "INTERNAL", 500, retryable=False)

    def __init__(self, message: str, *, field: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_ms = retry_after_ms


class InvalidArgument(BatonError):
    status = Status("invalid", "INVALID_ARGUMENT", 400, retryable=False)


class ContextExceeded(InvalidArgument):
    status = Status("context", "INVALID_ARGUMENT", 400, retryable=False)


class NotSupported(InvalidArgument):
    status = Status("unsupported", "UNIMPLEMENTED", 400, retryable=False)


class Unauthenticated(BatonError):
    status = Status("unauthenticated", "UNAUTHENTICATED", 401, retryable=False)


class PermissionDenied(BatonError):
    status = Status("denied", "PERMISSION_DENIED", 403, retryable=False)


class NotFound(BatonError):
    status = Status("not_found", "NOT_FOUND", 404, retryable=False)


class TooLarge(BatonError):
    status = Status("too_large", "INVALID_ARGUMENT", 413, retryable=False)


class FailedPrecondition(BatonError):
    status = Status("precondition", "FAILED_PRECONDITION", 409, retryable=False)


class BudgetSpent(FailedPrecondition):
    status = Status("budget", "FAILED_PRECONDITION", 409, retryable=False)


class Incompatible(FailedPrecondition):
    status = Status("incompatible", "FAILED_PRECONDITION", 409, retryable=False)


class StaleAttempt(FailedPrecondition):
    status = Status("stale", "FAILED_PRECONDITION", 409, retryable=False)


class ResourceExhausted(BatonError):
    status = Status("exhausted", "RESOURCE_EXHAUSTED", 429, retryable=True)


class Unavailable(BatonError):
    status = Status("unavailable", "UNAVAILABLE", 503, retryable=True)


class DeadlineExceeded(BatonError):
    status = Status("deadline", "DEADLINE_EXCEEDED", 504, retryable=False)


class Cancelled(BatonError):
    status = Status("cancelled", "CANCELLED", 499, retryable=False)


class DataCorrupt(BatonError):
    status = Status("corrupt", "DATA_LOSS", 500, retryable=True)


class Internal(BatonError):
    status = Status("internal", "INTERNAL", 500, retryable=False)


class EngineFailed(Internal):
    status = Status("engine", "INTERNAL", 500, retryable=True)


class Poison(Internal):
    status = Status("poison", "INTERNAL", 500, retryable=False)


class SetupError(Exception):
    """Something a person must mend before Baton can start. The message says what and how."""


class ConfigError(SetupError):
    pass


class ModelError(SetupError):
    pass


class StartError(SetupError):
    pass


class IllegalTransition(AssertionError):
    """A state machine was given an event that its state cannot have: always a bug of ours."""

    def __init__(self, machine: str, state: object, event: object, ident: object) -> None:
        super().__init__(f"{machine} {ident}: {event} is illegal in {state}")


class InvariantViolation(AssertionError):
    """One of the numbered invariants of ARCHITECTURE.md does not hold."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"invariant {number}: {message}")
        self.number = number


def _codes() -> dict[str, type[BatonError]]:
    found: dict[str, type[BatonError]] = {}
    pending: list[type[BatonError]] = [BatonError]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        found.setdefault(kind.status.code, kind)
    found["internal"] = Internal
    return found


def from_code(code: str, message: str, *, field: str | None = None, retry_after_ms: int | None = None) -> BatonError:
    """The error of `code` as it crossed a wire; an unknown code of a newer peer becomes `Internal`."""
    return _codes().get(code, Internal)(message, field=field, retry_after_ms=retry_after_ms)
