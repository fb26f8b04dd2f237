"""Who holds copies of a turn's pages, and who is asked for those that its worker lacks: beside any placement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np

from runtime.domain.messages import Holder, View, Worker
from runtime.domain.routing import Asked, Explained, Explaining, Route, holder
from runtime.ids import BootId
from runtime.router.holders import Held

# Holders that are named beyond those that are needed, for when one fails; and those that may be asked.
_SPARE = 2
_ASKED = 3


class Knows(Protocol):
    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        """Who holds how much of a prompt; None when nothing is known of it."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """`copies` of each sequence, on workers of the role `on` where there are some. Nobody is asked for fewer than
    `least_tokens`."""

    copies: int
    on: str
    least_tokens: int = 64


class MirrorRouter:
    """`runtime.domain.routing.Explaining`, around another."""

    def __init__(self, router: Explaining, knows: Knows, policy: MirrorPolicy) -> None:
        self._router = router
        self._knows = knows
        self._policy = policy
        self._workers: tuple[Worker, ...] = ()
        self._boots: tuple[BootId, ...] = ()
        self._able: tuple[list[tuple[str, Worker]], list[tuple[str, Worker]]] = ([], [])
        self._turn = 0

    def see(self, view: View, now: float) -> None:
        self._router.see(view, now)
        self._workers = view.workers
        self._boots = tuple([worker.boot for worker in view.workers])
        staying = [(_host(worker), worker) for worker in view.workers if not worker.draining]
        wanted = [each for each in staying if each[1].role == self._policy.on]
        self._able = wanted, [each for each in staying if each[1].role != self._policy.on]

    def explain(self, asked: Asked, now: float) -> Explained:
        return self._router.explain(asked, now)

    def route(self, asked: Asked, now: float) -> Route | None:
        route = self._router.route(asked, now)
        if route is None:
            return None
        held, out = self._held(asked), asked.exclude | {route.worker.boot}
        holders, mirrors = self._holders(route.worker, out, held), self._mirrors(route.worker, out, held)
        return replace(route, holders=holders, copies=self._policy.copies, mirrors=mirrors)

    def _held(self, asked: Asked) -> dict[BootId, int]:
        """Tokens of the prompt that each worker has in its pages, of those that have any."""
        known = self._knows.held(asked, self._boots)
        if known is None:
            return {}
        return {self._boots[each]: int(known.pool[each]) for each in np.flatnonzero(known.pool)}

    def _holders(self, chosen: Worker, out: frozenset[BootId], held: dict[BootId, int]) -> tuple[Holder, ...]:
        """Those that have more than the chosen worker, the most first."""
        least = held.get(chosen.boot, 0) + self._policy.least_tokens
        more = [worker for worker in self._workers if held.get(worker.boot, 0) >= least and worker.boot not in out]
        more = [worker for worker in more if chosen.pages.takes(worker.pages.dtype)]
        more.sort(key=lambda worker: -held[worker.boot])
        return tuple(map(holder, more[:_ASKED]))

    def _mirrors(self, chosen: Worker, out: frozenset[BootId], held: dict[BootId, int]) -> tuple[Holder, ...]:
        """On another host before this one; there those that have most of it already, then those of the wanted role. Of
        another data type are none: what was rounded for a copy would be taken for what it was."""
        self._turn += 1
        here, many = _host(chosen), self._policy.copies + _SPARE
        dtype = chosen.pages.dtype
        others = [each for each in self._in_turn() if each[1].boot not in out and each[1].pages.dtype == dtype]
        having = [each for each in others if each[1].boot in held]
        far = islice((each for each in others if each[0] != here), many)
        near = islice((each for each in others if each[0] == here), many)
        found = {worker.boot: (host, worker) for host, worker in (*having, *far, *near)}
        ordered = sorted(found.values(), key=lambda each: (each[0] == here, -held.get(each[1].boot, 0)))
        return tuple(holder(worker) for _, worker in ordered[:many])

    def _in_turn(self) -> Iterator[tuple[str, Worker]]:
        """All that may hold copies, those of the wanted role first, and equal ones used equally."""
        for several in self._able:
            start = self._turn % max(len(several), 1)
            yield from several[start:]
            yield from several[:start]


def _host(worker: Worker) -> str:
    return worker.address.rpartition(":")[0]
