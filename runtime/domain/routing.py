"""Where a turn goes: which decode worker, and which prefill workers it may call. Never how to reach them.

Here is what every way of placing has in common, and the two that look at nothing but turns; what a turn would cost is
weighed in `runtime/router`.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from runtime.domain.messages import Holder, PrefillCandidate, View, Worker
from runtime.ids import BootId, TenantId, WorkerId

DECODE = "decode"
PREFILL = "prefill"
# What a warm prefix is worth, in turns that another worker has less.
_NEAR_TURNS = 4


class Placement(enum.StrEnum):
    COST = "cost"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn that wants a place: the tokens of its prompt, and how many may follow. `in_flight` counts the turns that
    this gateway has on each worker; `near` is the one that likely has the turn's pages."""

    tenant: TenantId
    tokens: Sequence[int]
    more: int
    in_flight: Mapping[BootId, int]
    exclude: frozenset[BootId] = frozenset()
    near: BootId | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a turn is expected to cost with a decode worker, in milliseconds; without a `prefill` worker, it prefills
    the prompt itself.

    `queue_ms` until the prefill begins, `prefill_ms` to compute what is not held, `load_ms` to fetch of that what is in
    the slower memory `load_tier` (`host`, `cold`; empty where nothing is fetched), `move_ms` of moving pages that no
    computation hides, `wait_ms` for pages and for a place in the batch, `others_ms` that others lose by it, who decode
    there or come after, `decode_ms` for the tokens that follow. `held` tokens of the prompt are in the decode worker's
    pages, `prefill_held` in those of the prefill worker.
    """

    worker: WorkerId
    prefill: WorkerId | None
    held: int
    prefill_held: int
    queue_ms: float
    prefill_ms: float
    move_ms: float
    wait_ms: float
    others_ms: float
    decode_ms: float
    load_ms: float = 0.0
    load_tier: str = ""

    @property
    def total_ms(self) -> float:
        here = self.queue_ms + self.prefill_ms + self.load_ms + self.move_ms
        return here + self.wait_ms + self.others_ms + self.decode_ms


def rounded(estimate: Estimate) -> dict[str, str | int | float | None]:
    """Its fields and the total, for people and in JSON."""
    named = asdict(estimate) | {"total_ms": estimate.total_ms}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in named.items()}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a turn goes: a decode worker, and the prefill workers that it may call, the best first, for an uncached
    suffix of `remote_min_tokens` or more; None leaves that to the worker. `why` is there when it was weighed. Of what
    it lacks `holders` have pages, the most first; `copies` of `mirrors` are to hold its own, the best first."""

    worker: Worker
    candidates: tuple[PrefillCandidate, ...]
    remote_min_tokens: int | None = None
    why: Estimate | None = None
    holders: tuple[Holder, ...] = ()
    copies: int = 0
    mirrors: tuple[Holder, ...] = ()

    def after(self, mirrors: tuple[Holder, ...], view: View) -> "Route":
        """For a turn that goes on: those who hold copies of its last attempt's pages are asked first, if they are
        still there."""
        here = {worker.boot for worker in view.workers} - {self.worker.boot}
        first = {each.boot: each for each in mirrors if each.boot in here}
        return replace(self, holders=tuple((first | {each.boot: each for each in self.holders}).values()))


class Reason(enum.StrEnum):
    """Why a worker is chosen: it costs the least, or by the placement that is configured; or the least loaded is taken,
    because nobody was measured yet, or because there is nothing to gain for so short a prompt."""

    COST = "cost"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    UNMEASURED = "unmeasured"
    SHORT = "short"


@dataclass(frozen=True, slots=True)
class Explained:
    """How a turn would be placed: on `worker`, None where nobody serves. `costs` are the decode workers with each way
    to prefill that was weighed, the cheapest first; empty where nothing is weighed."""

    worker: WorkerId | None
    reason: Reason
    costs: tuple[Estimate, ...] = ()


class Routing(Protocol):
    """A way of placing turns. `now` is in seconds of one monotonic clock."""

    def see(self, view: View, now: float) -> None:
        """Who serves, from now on."""

    def route(self, asked: Asked, now: float) -> Route | None:
        """Place a turn; None when nobody serves who is not excluded."""


class Explaining(Routing, Protocol):
    """One that can say what it would do."""

    def explain(self, asked: Asked, now: float) -> Explained:
        """How `route` would place it; places nothing."""


def staying(view: View, role: str) -> list[Worker]:
    """Those of a role who may be given something new."""
    return [worker for worker in view.workers if worker.role == role and not worker.draining]


def candidate(worker: Worker) -> PrefillCandidate:
    return PrefillCandidate(worker.id, worker.boot, worker.address)


def holder(worker: Worker) -> Holder:
    return Holder(worker.id, worker.boot, worker.address, worker.role)


def depth(worker: Worker) -> int:
    """Sequences that the worker reported to have in any state."""
    return worker.load.running + worker.load.waiting + worker.load.awaiting if worker.load else 0


class Router:
    """Round robin, or the least loaded. Remembers only whose turn is next, so that equal workers are used equally."""

    def __init__(self, placement: Placement) -> None:
        self._round_robin = placement is Placement.ROUND_ROBIN
        self._view = View(0, 0)
        self._turns = {DECODE: 0, PREFILL: 0}

    def see(self, view: View, now: float) -> None:
        self._view = view

    def route(self, asked: Asked, now: float) -> Route | None:
        worker = self.choose(self._view, asked.in_flight, asked.exclude, asked.near)
        return None if worker is None else Route(worker, self.candidates(self._view))

    def explain(self, asked: Asked, now: float) -> Explained:
        turns = dict(self._turns)
        worker = self.choose(self._view, asked.in_flight, asked.exclude, asked.near)
        self._turns = turns
        reason = Reason.ROUND_ROBIN if self._round_robin else Reason.LEAST_LOADED
        return Explained(None if worker is None else worker.id, reason)

    def choose(
        self, view: View, in_flight: Mapping[BootId, int], exclude: frozenset[BootId], near: BootId | None = None
    ) -> Worker | None:
        """A decode worker for a turn, or None. The one that is `near` the turn's pages is worth a few turns more than
        the others have."""
        able = [worker for worker in staying(view, DECODE) if worker.boot not in exclude]
        if not able:
            return None
        ordered = self._rotate(DECODE, able)
        if self._round_robin:
            return next((worker for worker in able if worker.boot == near), ordered[0])

        def busy(worker: Worker) -> int:
            return max(in_flight.get(worker.boot, 0), depth(worker)) - _NEAR_TURNS * (worker.boot == near)

        return min(ordered, key=busy)

    def candidates(self, view: View) -> tuple[PrefillCandidate, ...]:
        """All prefill workers, the best first."""
        able = staying(view, PREFILL)
        if not able:
            return ()
        ordered = self._rotate(PREFILL, able)
        if not self._round_robin:
            ordered.sort(key=depth)
        return tuple(map(candidate, ordered))

    def _rotate(self, role: str, workers: Sequence[Worker]) -> list[Worker]:
        self._turns[role] += 1
        start = self._turns[role] % len(workers)
        return [*workers[start:], *workers[:start]]
