"""Pages that one worker has and another wants: a mirror that is to hold copies, a successor that goes on from them.

Whoever wants pages issues the ticket and asks who has them to push, so that they land as those of a prefill worker do.
"""

from dataclasses import dataclass, field

from runtime.domain.messages import Holder, Ticket
from runtime.ids import SessionId, TenantId

MAX_COPIES = 2
"""Of a sequence's pages, beside those of the worker that runs it."""


@dataclass(frozen=True, slots=True)
class KeepCall:
    """Hold the full pages of all of `tokens` but the last one. What is lacking is to be fetched from `source`, no more
    than `most_pages` for this call."""

    tenant: TenantId
    tokens: tuple[int, ...] = field(repr=False)
    source: Holder
    most_pages: int
    remaining_ms: int
    session: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The first `pages` pages of the call are held now; `fetched_bytes` of payload came for it."""

    pages: int
    fetched_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FetchCall:
    """Push the pages of the ticket, from its first on as far as they are here."""

    ticket: Ticket
    session: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """How many pages of the ticket were pushed, and bytes of payload in them."""

    pages: int
    payload_bytes: int
