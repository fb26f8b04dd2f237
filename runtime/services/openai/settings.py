"""The limits of the HTTP API, and the header that sets one of them."""

from dataclasses import dataclass

from runtime.ids import TenantId

DEADLINE_HEADER = "x-baton-deadline-ms"
DEFAULT_TENANT = TenantId("default")


@dataclass(frozen=True, slots=True)
class OpenAiSettings:
    """`deadline_s` bounds a request that names no deadline; `linger_s` is how long a client that does not read may then
    hold its connection. Texts above `inline_chars` are tokenized on one of `tokenize_threads` threads, with room for
    `tokenize_waiting` of them; beyond that requests are told to come again.
    """

    tenant: TenantId = DEFAULT_TENANT
    max_body_bytes: int = 32 * 1024 * 1024
    deadline_s: float = 600.0
    linger_s: float = 5.0
    inline_chars: int = 16 * 1024
    tokenize_threads: int = 2
    tokenize_waiting: int = 64
