"""What happened to a session, for those who watch it: values, numbered without gap, and never what was said in it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.domain.sessions import Policies, StopReason, TurnStatus
from runtime.domain.spending import Limits
from runtime.ids import TurnId

KEPT_NOTICES = 1024


class What(enum.StrEnum):
    OPENED = "opened"
    BEGUN = "begun"
    ENDED = "ended"
    FORKED = "forked"
    ROLLED_BACK = "rolled_back"
    DROPPED = "dropped"
    UPDATED = "updated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Happening:
    """`turn` is of a turn, or the head of a branch, whose calls were resolved; `version` of an update."""

    what: What
    branch: str = ""
    turn: TurnId | None = None
    status: TurnStatus | None = None
    stop: StopReason | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """`number` counts a session's notices from 1; `at_ms` is the store's clock, milliseconds since 1970."""

    number: int
    at_ms: int
    happening: Happening


@dataclass(frozen=True, slots=True)
class Change:
    """What a session is to be; None leaves it as it is. `ttl_ms` 0 is for ever."""

    expected_version: int | None = None
    metadata: Mapping[str, str] | None = None
    ttl_ms: int | None = None
    policies: Policies | None = None
    limits: Limits | None = None
