"""What tells another try of a request from a first one: the client's own key, or the mark of OpenAI's client."""

import hashlib

from starlette.datastructures import Headers
from starlette.types import Scope

from runtime.domain.sessions import Key
from runtime.errors import InvalidArgument

KEY_HEADER = "idempotency-key"
SESSION_HEADER = "x-baton-session"
MAX_HEADER = 128
_RETRY_HEADER = "x-stainless-retry-count"
# How long after a first try the same request may be another one of it.
_RETRY_WINDOW_S = 600.0


def retried_key(scope: Scope, body: bytes) -> Key | None:
    """Under a key of the client's own a request counts once. A try of OpenAI's client that is not the first is the one
    that was made before, of the same API key; a first one is a request of its own, whatever was said before."""
    headers = Headers(scope=scope)
    said = (scope["path"].encode(), headers.get(SESSION_HEADER, "").encode(), body)
    named = headers.get(KEY_HEADER)
    if named is not None:
        if not 1 <= len(named) <= MAX_HEADER:
            told = f"{KEY_HEADER} must have 1 to {MAX_HEADER} characters, has {len(named)}"
            raise InvalidArgument(told, field=KEY_HEADER)
        return Key(f"http/{named}", _digest(*said))
    tries = headers.get(_RETRY_HEADER, "")
    if not tries.isdecimal():
        return None
    digest = _digest(headers.get("authorization", "").encode(), *said)
    return Key(f"try/{digest.hex()}", digest, first=int(tries[:9]) == 0, window_s=_RETRY_WINDOW_S)


def _digest(*parts: bytes) -> bytes:
    """Where one part ends is part of it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
