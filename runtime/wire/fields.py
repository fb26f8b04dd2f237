"""What messages are held against on their way in: lengths, ranges, token ids. Refuses by the name of the field."""

import math
from collections.abc import Sequence

from runtime.errors import InvalidArgument
from runtime.ids import SessionId

MAX_TOKEN = 2**31 - 1
MAX_SESSION = 64
_FINGERPRINT_DIGITS = 32
_HEXADECIMAL = frozenset("0123456789abcdef")


def name(value: str, field: str, limit: int = 128) -> str:
    """A name, an id or an address: 1 to `limit` characters."""
    if 1 <= len(value) <= limit:
        return value
    raise InvalidArgument(f"{field} must have 1 to {limit} characters, has {len(value)}", field=field)


def text(value: str, field: str, limit: int) -> str:
    if len(value) <= limit:
        return value
    raise InvalidArgument(f"{field} must have at most {limit} characters, has {len(value)}", field=field)


def session(value: str) -> SessionId | None:
    """Whose content it is; empty for nobody's."""
    return SessionId(text(value, "session", MAX_SESSION)) if value else None


def fingerprint(value: str, field: str) -> str:
    if len(value) == _FINGERPRINT_DIGITS and _HEXADECIMAL.issuperset(value):
        return value
    raise InvalidArgument(f"{field} must have {_FINGERPRINT_DIGITS} lowercase hexadecimal digits", field=field)


def at_least(least: int, value: int, field: str) -> int:
    if value >= least:
        return value
    raise InvalidArgument(f"{field} must be at least {least}, got {value}", field=field)


def at_most(limit: int, count: int, field: str) -> None:
    if count > limit:
        raise InvalidArgument(f"{field} has {count} entries, at most {limit} are allowed", field=field)


def tokens(ids: Sequence[int], field: str, least: int = 0) -> tuple[int, ...]:
    """Token ids, at least `least` of them. Whether the model has them is not known here."""
    if len(ids) < least:
        raise InvalidArgument(f"{field} must have at least {least} token ids, has {len(ids)}", field=field)
    found = tuple(ids)
    if found and max(found) > MAX_TOKEN:
        raise InvalidArgument(f"{field} holds the token id {max(found)}, the limit is {MAX_TOKEN}", field=field)
    return found


def milliseconds(value: float, field: str) -> float:
    if math.isfinite(value) and value >= 0:
        return value
    raise InvalidArgument(f"{field} must be finite and not negative, got {value}", field=field)
