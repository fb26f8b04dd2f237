"""The workers of one role as columns of numbers, from the view and from what was placed since."""

from collections.abc import Sequence

import numpy as np

from runtime.domain.messages import Worker
from runtime.domain.routing import depth
from runtime.ids import BootId
from runtime.router.curves import BATCH, TOKENS, Floats, Ints, Points, at, columns, each_at

# Gigabytes a second, as long as nothing was sent.
_NEAR_GB = 4.0
_FAR_GB = 1.0
_HOST_GB = 4.0
_COLD_GB = 0.5
SHM, HOST, COLD = "shm", "host", "cold"


class Fleet:
    """`otherwise` are prefill lines for workers of a role of which none was measured. What was placed on a worker
    keeps it busy until its next load says how busy it is."""

    def __init__(
        self, workers: Sequence[Worker], before: "Fleet | None", now: float, otherwise: Sequence[Points] = ()
    ) -> None:
        self.workers = workers
        self.number = {worker.boot: number for number, worker in enumerate(workers)}
        self.prefill = columns((worker.profile.prefill for worker in workers), "tokens", otherwise)
        self.decode = columns((worker.profile.decode for worker in workers), "batch")
        self.depth: Ints = np.array([depth(worker) for worker in workers], dtype=np.int64)
        loads = [worker.load for worker in workers]
        pages = [load.pages if load else None for load in loads]
        self.room: Ints = np.array([each.free + each.cached if each else 0 for each in pages], dtype=np.int64)
        self.owned: Ints = np.array([each.owned if each else 0 for each in pages], dtype=np.int64)
        self.total: Ints = np.array([each.total if each else 0 for each in pages], dtype=np.int64)
        self.waiting: Ints = np.array([load.waiting if load else 0 for load in loads], dtype=np.int64)
        self.running: Ints = np.array([load.running if load else 0 for load in loads], dtype=np.int64)
        self.host: Ints = np.array([hash(worker.address.rpartition(":")[0]) for worker in workers], dtype=np.int64)
        speeds = [dict(worker.profile.links) for worker in workers]
        # A megabyte of pages takes as many milliseconds as one over its gigabytes a second.
        self.near_gb: Floats = np.array([each.get(SHM, _NEAR_GB) or _NEAR_GB for each in speeds])
        self.far_gb: Floats = np.array([_slowest(each) for each in speeds])
        self.host_gb: Floats = np.array([each.get(HOST, _HOST_GB) or _HOST_GB for each in speeds])
        self.cold_gb: Floats = np.array([each.get(COLD, _COLD_GB) or _COLD_GB for each in speeds])
        self.busy_until = self._busy(before, now)

    def __len__(self) -> int:
        return len(self.workers)

    def took(self, tokens: int) -> Floats:
        """Milliseconds that each takes for the first so many tokens of a prompt."""
        assert self.prefill is not None, "asked only where it is known"
        return at(self.prefill, TOKENS, tokens)

    def each_took(self, tokens: Ints) -> Floats:
        assert self.prefill is not None, "asked only where it is known"
        return each_at(self.prefill, TOKENS, tokens)

    def step(self, batch: Ints) -> Floats:
        """Milliseconds of a step of each, with a batch of its own."""
        assert self.decode is not None, "asked only where it is known"
        return each_at(self.decode, BATCH, batch)

    def queue(self, now: float) -> Floats:
        """Milliseconds until each is through with the prefills that it has."""
        queue: Floats = np.maximum(self.busy_until - now * 1000, 0.0)
        return queue

    def book(self, number: int, now: float, ms: float) -> None:
        self.busy_until[number] = max(float(self.busy_until[number]), now * 1000) + ms

    def _busy(self, before: "Fleet | None", now: float) -> Floats:
        if self.prefill is None:
            return np.zeros(len(self.workers))
        todo = np.array([worker.load.prefill_tokens if worker.load else 0 for worker in self.workers], dtype=np.int64)
        busy: Floats = now * 1000 + self.each_took(todo)
        for number, worker in enumerate(self.workers):
            known = None if before is None else before.number.get(worker.boot)
            if before is not None and known is not None and before.workers[known].load == worker.load:
                busy[number] = before.busy_until[known]
        return busy


def _slowest(speeds: dict[str, float]) -> float:
    """To another host, where it is not known by which way."""
    return min(
        (speed for transport, speed in speeds.items() if transport not in (SHM, HOST, COLD) and speed), default=_FAR_GB
    )


def numbers(fleet: Fleet, boots: frozenset[BootId]) -> list[int]:
    return [fleet.number[boot] for boot in boots if boot in fleet.number]
