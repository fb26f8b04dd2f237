"""Where a turn goes: which decode worker, and which prefill workers it may call. Never how to reach them."""

import enum
from collections.abc import Mapping, Sequence

from runtime.domain.messages import PrefillCandidate, View, Worker
from runtime.ids import BootId

DECODE = "decode"
PREFILL = "prefill"
# What a warm prefix is worth, in turns that another worker has less.
_NEAR_TURNS = 4


class Placement(enum.StrEnum):
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"


def _depth(worker: Worker) -> int:
    """Sequences that the worker reported to have in any state."""
    return worker.load.running + worker.load.waiting + worker.load.awaiting if worker.load else 0


def _staying(view: View, role: str) -> list[Worker]:
    return [worker for worker in view.workers if worker.role == role and not worker.draining]


class Router:
    """Remembers only whose turn is next, so that equal workers are used equally."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._turns = {DECODE: 0, PREFILL: 0}

    def choose(
        self, view: View, in_flight: Mapping[BootId, int], exclude: frozenset[BootId], near: BootId | None = None
    ) -> Worker | None:
        """A decode worker for a turn, or None. `in_flight` counts the turns that this gateway has on each; the one that
        is `near` the turn's pages is worth a few more than the others have."""
        able = [worker for worker in _staying(view, DECODE) if worker.boot not in exclude]
        if not able:
            return None
        ordered = self._rotate(DECODE, able)
        if self._placement is Placement.ROUND_ROBIN:
            return next((worker for worker in able if worker.boot == near), ordered[0])

        def busy(worker: Worker) -> int:
            return max(in_flight.get(worker.boot, 0), _depth(worker)) - _NEAR_TURNS * (worker.boot == near)

        return min(ordered, key=busy)

    def candidates(self, view: View) -> tuple[PrefillCandidate, ...]:
        """All prefill workers, the best first."""
        able = _staying(view, PREFILL)
        if not able:
            return ()
        ordered = self._rotate(PREFILL, able)
        if self._placement is Placement.LEAST_LOADED:
            ordered.sort(key=_depth)
        return tuple(PrefillCandidate(worker.id, worker.boot, worker.address) for worker in ordered)

    def _rotate(self, role: str, workers: Sequence[Worker]) -> list[Worker]:
        self._turns[role] += 1
        start = self._turns[role] % len(workers)
        return [*workers[start:], *workers[:start]]
