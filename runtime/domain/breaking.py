"""Whom a gateway avoids for a while, and how often it may try again: circuit breakers and a retry budget.

A breaker is of one generation of a worker and dies with it.

    state      event -> next
    CLOSED     `failures` in a row -> OPEN
               tokens many times slower than the others' -> OPEN
    OPEN       its time is over -> HALF_OPEN
    HALF_OPEN  a turn is placed on it: the probe; nobody else until that has ended
               an output -> CLOSED, with a clean slate
               a failure -> OPEN, for twice as long
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from runtime.ids import BootId

_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """A worker is avoided for `open_s` after `failures` in a row, or when its tokens take `slow_factor` times as long
    as the median of the other workers', but never when they take less than `slow_s`. Each time that follows soon is
    twice as long, up to `longest_s`. A probe that tells nothing within `probe_s` is no longer waited for. A pace is
    judged by `samples` outputs.
    """

    failures: int = 3
    open_s: float = 1.0
    longest_s: float = 30.0
    probe_s: float = 10.0
    slow_factor: float = 8.0
    slow_s: float = 0.25
    samples: int = 16


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    open_s: float = 0.0
    # None is CLOSED; after this time it is HALF_OPEN.
    until: float | None = None
    probe_until: float = 0.0
    closed_at: float = 0.0
    pace: float = 0.0
    samples: int = 0


@dataclass(slots=True)
class Breakers:
    """Times are seconds of one monotonic clock."""

    policy: BreakerPolicy
    _known: dict[BootId, _Breaker] = field(default_factory=dict)
    _open: set[BootId] = field(default_factory=set)

    def avoided(self, now: float) -> frozenset[BootId]:
        """Those on whom nothing is placed now, if anybody else serves."""
        if not self._open:
            return frozenset()
        return frozenset(boot for boot in self._open if self._closed_to_all(self._known[boot], now))

    def placed(self, boot: BootId, now: float) -> None:
        """If it is half open, this turn is its probe."""
        breaker = self._known.get(boot)
        if breaker is not None and breaker.until is not None:
            breaker.probe_until = now + self.policy.probe_s

    def served(self, boot: BootId, pace: float | None, now: float) -> bool:
        """An output came, after `pace` seconds a token where that is known; True when the worker is avoided from now
        on, for being slow."""
        breaker = self._known.setdefault(boot, _Breaker())
        breaker.failures = 0
        if breaker.until is not None:
            if now >= breaker.until:
                self._close(boot, breaker, now)
            return False
        if pace is None:
            return False
        breaker.pace += (pace - breaker.pace) * (_SMOOTHING if breaker.samples else 1.0)
        breaker.samples += 1
        if breaker.samples % self.policy.samples or not self._slow(boot, breaker.pace):
            return False
        self._break(boot, breaker, now)
        return True

    def failed(self, boot: BootId, now: float) -> bool:
        """A turn could not run on it, or its stream ended; True when the worker is avoided from now on."""
        breaker = self._known.setdefault(boot, _Breaker())
        breaker.failures += 1
        half_open = breaker.until is not None and now >= breaker.until
        if not half_open and (breaker.until is not None or breaker.failures < self.policy.failures):
            return False
        self._break(boot, breaker, now)
        return True

    def keep(self, boots: Iterable[BootId]) -> None:
        """Forget all others."""
        here = set(boots)
        for boot in self._known.keys() - here:
            del self._known[boot]
        self._open &= here

    def _closed_to_all(self, breaker: _Breaker, now: float) -> bool:
        assert breaker.until is not None
        return now < breaker.until or now < breaker.probe_until

    def _slow(self, boot: BootId, pace: float) -> bool:
        others = [
            other.pace for ident, other in self._known.items() if ident != boot and other.samples >= self.policy.samples
        ]
        if not others or pace < self.policy.slow_s:
            return False
        return pace > self.policy.slow_factor * median(others)

    def _break(self, boot: BootId, breaker: _Breaker, now: float) -> None:
        soon = breaker.open_s and (breaker.until is not None or now - breaker.closed_at < self.policy.longest_s)
        breaker.open_s = min(2 * breaker.open_s, self.policy.longest_s) if soon else self.policy.open_s
        breaker.until = now + breaker.open_s
        breaker.probe_until = 0.0
        self._open.add(boot)

    def _close(self, boot: BootId, breaker: _Breaker, now: float) -> None:
        breaker.until, breaker.closed_at = None, now
        breaker.pace, breaker.samples = 0.0, 0
        self._open.discard(boot)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Every turn earns `per_turn` of a retry, every second `per_s`; at most `burst` are kept."""

    per_turn: float = 0.2
    per_s: float = 1.0
    burst: float = 64.0


class RetryBudget:
    """Of one gateway: what it may try again that failed before its first token, so that a mesh which refuses much is
    not asked for more. Going on with what a client has tokens of is not counted: it costs the mesh less than an error.
    """

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self._policy = policy
        self._left = policy.burst
        self._at = now

    def earn(self) -> None:
        self._left = min(self._left + self._policy.per_turn, self._policy.burst)

    def try_take(self, now: float) -> bool:
        """False when there is none left."""
        self._left = min(self._left + (now - self._at) * self._policy.per_s, self._policy.burst)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
