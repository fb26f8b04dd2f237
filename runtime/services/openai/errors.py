"""How an error looks in OpenAI's API: status, headers and body. The statuses are those of runtime/errors.py."""

import json
import math

from runtime.errors import BatonError

# Baton's code to OpenAI's; the others have no counterpart and keep their own.
_CODES = {
    "context": "context_length_exceeded",
    "not_found": "model_not_found",
    "unsupported": "unsupported_parameter",
    "invalid": "invalid_value",
    "unauthenticated": "invalid_api_key",
    "exhausted": "rate_limit_exceeded",
    "internal": "internal_error",
}


def error_body(error: BatonError, param: str | None) -> bytes:
    """`param` is what the request calls the field at fault."""
    code = _CODES.get(error.status.code, error.status.code)
    if error.status.code == "not_found" and error.field != "model":
        code = "not_found"
    if error.field == "on_conflict":
        code = "conversation_locked"
    return _shaped(error.message, _kind(error.status.http), param, code)


def refusal_body(message: str, code: str) -> bytes:
    """The body for a request that never became one of ours."""
    return _shaped(message, "invalid_request_error", None, code)


def _shaped(message: str, kind: str, param: str | None, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error_headers(error: BatonError) -> dict[str, str]:
    """When to come again, if at all: OpenAI's clients retry most statuses unless they are told not to."""
    if not error.status.retryable:
        return {"x-should-retry": "false"}
    if error.retry_after_ms is None:
        return {}
    return {"retry-after": str(math.ceil(error.retry_after_ms / 1000)), "retry-after-ms": str(error.retry_after_ms)}


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
