"""A session's KV kept while the session is away: what a client asks for, what a worker grants, what came of it.

A grant is of one turn. It keeps the full pages of the turn's context in the pool of the worker that ran it: they are
forgotten after all others, until the grant is over. All grants of a pool together, and those of one tenant, have no
more pages than its quota (invariant 11). A grant is over when its time is, when the session is back, or when running
sequences need all of the room; it may lose pages to them before, the last of the context first.
"""

import enum
from dataclasses import dataclass

from runtime.domain.spending import Amounts
from runtime.errors import InvalidArgument
from runtime.ids import SequenceId, SessionId, TurnId

MAX_KEEP_MS = 7 * 24 * 3600 * 1000


class Pause(enum.StrEnum):
    """What a session waits for after a turn: the results of tools, or whoever the answer was for."""

    TOOLS = "tools"
    ANSWER = "answer"


class KeptIn(enum.StrEnum):
    """Where KV is kept: in the pool of the worker that ran the turn."""

    POOL = "pool"


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many milliseconds KV is to be kept after a turn that ends with calls of tools, and after one that ends
    with an answer; 0 is not at all."""

    after_tools_ms: int = 0
    after_answer_ms: int = 0

    def __bool__(self) -> bool:
        return self.longest_ms > 0

    @property
    def each(self) -> tuple[int, int]:
        return self.after_tools_ms, self.after_answer_ms

    @property
    def longest_ms(self) -> int:
        return max(self.each)

    def after(self, pause: Pause) -> int:
        return self.after_tools_ms if pause is Pause.TOOLS else self.after_answer_ms

    def within(self, most: "Retention") -> "Retention":
        """No longer than somebody allows."""
        return Retention(min(self.after_tools_ms, most.after_tools_ms), min(self.after_answer_ms, most.after_answer_ms))

    def validate(self, field: str) -> None:
        """Raise `InvalidArgument` naming what of `field` is too long."""
        for pause, asked in zip(Pause, self.each, strict=True):
            if not 0 <= asked <= MAX_KEEP_MS:
                where = f"{field}.after_{pause}_ms"
                raise InvalidArgument(f"{where} must be 0 to {MAX_KEEP_MS}, got {asked}", field=where)


NO_RETENTION = Retention()


class Refusal(enum.StrEnum):
    """Why nothing is kept. `worker_quota`, `tenant_quota`: other grants have what the worker gives, to all or to the
    tenant. `no_page`: the context fills no page. `budget`: the session may spend no more on KV. `not_offered`: the
    worker keeps nothing for so long, or is about to leave. `stopped`: no worker ran the turn to its end."""

    WORKER_QUOTA = "worker_quota"
    TENANT_QUOTA = "tenant_quota"
    NO_PAGE = "no_page"
    BUDGET = "budget"
    NOT_OFFERED = "not_offered"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Quota:
    """How many pages of a pool may be under grants: of all tenants together, and of one."""

    worker: int
    tenant: int


@dataclass(frozen=True, slots=True)
class Granted:
    """What an engine keeps of a sequence that has ended: so many pages, or nothing, and why."""

    pages: int
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Keeping:
    """A grant has so many pages from now on; with none it is over."""

    sequence: SequenceId
    pages: int


@dataclass(frozen=True, slots=True)
class Promise:
    """What a worker keeps of an attempt that has ended, until it is told what the session waits for: `tokens` of its
    context in `kept_in`, for as long as `keeps` says; or why nothing."""

    tokens: int = 0
    keeps: Retention = NO_RETENTION
    refusal: Refusal | None = None
    kept_in: KeptIn = KeptIn.POOL


@dataclass(frozen=True, slots=True)
class Retained:
    """What is kept after a turn, or was to be: `tokens` of KV, which are `kv_bytes`, for `keep_ms` from the turn's
    end."""

    pause: Pause
    tokens: int = 0
    kv_bytes: int = 0
    keep_ms: int = 0
    refusal: Refusal | None = None
    kept_in: KeptIn = KeptIn.POOL

    @property
    def reserve(self) -> Amounts:
        """What it comes to if it is kept to its end."""
        return Amounts(kv_byte_seconds=-(-self.kv_bytes * self.keep_ms // 1000))


@dataclass(frozen=True, slots=True)
class Holding:
    """A grant that a branch has, as `Retained`, with what is left of its time by the store's clock."""

    pause: Pause
    tokens: int
    kv_bytes: int
    remaining_ms: int
    kept_in: KeptIn = KeptIn.POOL


@dataclass(frozen=True, slots=True)
class KeptFor:
    """A grant of a turn is over: what keeping its pages came to."""

    session: SessionId
    turn: TurnId
    byte_seconds: int
