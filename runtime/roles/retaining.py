"""What a decode worker keeps for sessions that are away: promises it, ends it in time, and tells what it came to.

Whether there is room under the quotas, the engine's pool decides when a sequence ends; the time is kept here.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.clock import Clock, Timer
from runtime.domain.messages import Paused, Start
from runtime.domain.retention import NO_RETENTION, Granted, KeptFor, Promise, Quota, Refusal, Retention
from runtime.domain.returning import Returns
from runtime.domain.steps import Expect, LetGo, StepOutput
from runtime.ports import Engine

if TYPE_CHECKING:
    from runtime.ids import SequenceId, SessionId, TurnId

_UNTOLD = 10_000
_TEN_MINUTES = Retention(600_000, 600_000)


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """Of a pool up to `worker_share` may be under grants, those of one tenant up to `tenant_share`, for no longer than
    `most` says."""

    worker_share: float = 0.5
    tenant_share: float = 0.5
    most: Retention = _TEN_MINUTES


@dataclass(slots=True)
class _Grant:
    """`byte_s` is what it came to until `since`, from when on it has `pages`."""

    session: "SessionId"
    turn: "TurnId"
    pages: int
    since: float
    timer: Timer
    byte_s: float = 0.0


class Retaining:
    def __init__(self, engine: Engine, clock: Clock, settings: RetentionSettings) -> None:
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._returns = Returns()
        self._grants: dict[SequenceId, _Grant] = {}
        self._untold: deque[KeptFor] = deque(maxlen=_UNTOLD)
        self._leaving = False

    def begins(self, start: Start) -> Quota | None:
        """A session is back; gives the quota under which its KV is kept after this attempt, if that is asked for."""
        if start.session is None:
            return None
        self._returns.back(start.session, self._clock.now())
        if not start.retention:
            return None
        pages, settings = self._engine.load().pages.total, self._settings
        if self._leaving or not start.retention.within(settings.most):
            return Quota(0, 0)
        return Quota(int(pages * settings.worker_share), int(pages * settings.tenant_share))

    def ended(self, start: Start, granted: Granted) -> Promise:
        """An attempt has come to its end; what is promised holds until it is told what its session waits for."""
        keeps = NO_RETENTION if self._leaving else start.retention.within(self._settings.most)
        if granted.refusal is not None:
            return Promise(refusal=granted.refusal if keeps else Refusal.NOT_OFFERED)
        sequence, session = start.ref.sequence, start.session
        if not keeps:
            self.unheard(sequence)
            return Promise(refusal=Refusal.NOT_OFFERED)
        assert session is not None, "only sessions are granted anything"
        timer = self._timer(sequence, keeps.longest_ms)
        self._grants[sequence] = _Grant(session, start.ref.turn, granted.pages, self._clock.now(), timer)
        return Promise(granted.pages * self._engine.spec.page_tokens, keeps)

    def unheard(self, sequence: "SequenceId") -> None:
        """An attempt has come to its end that nobody wants any more."""
        self._engine.tell(LetGo(sequence))

    def paused(self, paused: Paused) -> None:
        """What the session waits for is known."""
        sequence = paused.ref.sequence
        self._engine.tell(Expect(sequence, self._returns.left(paused.session, paused.pause, self._clock.now())))
        grant = self._grants.get(sequence)
        if grant is not None:
            grant.timer.cancel()
            grant.timer = self._timer(sequence, paused.keep_ms)

    def on_step(self, step: StepOutput) -> None:
        """Learn what grants have lost."""
        now = self._clock.now()
        for keeping in step.keeping:
            grant = self._grants.get(keeping.sequence)
            if grant is None:
                continue
            grant.byte_s += grant.pages * self._engine.spec.page_bytes * (now - grant.since)
            grant.pages, grant.since = keeping.pages, now
            if not keeping.pages:
                grant.timer.cancel()
                del self._grants[keeping.sequence]
                self._untold.append(KeptFor(grant.session, grant.turn, round(grant.byte_s)))

    def drain(self) -> tuple[KeptFor, ...]:
        """What grants came to that are over since the last call."""
        told, self._untold = tuple(self._untold), deque(maxlen=_UNTOLD)
        return told

    def leave(self) -> None:
        """The worker is about to leave: nothing is promised any more, and what was is over."""
        self._leaving = True
        for sequence in self._grants:
            self._engine.tell(LetGo(sequence))

    def stop(self) -> None:
        for grant in self._grants.values():
            grant.timer.cancel()

    def _timer(self, sequence: "SequenceId", milliseconds: int) -> Timer:
        return self._clock.call_later(milliseconds / 1000, lambda: self._engine.tell(LetGo(sequence)))
