"""Keeps a mesh's workers alive: starts each, waits for its end, starts it again. Never knows what hosts them.

A worker that cannot start the first time is a mistake of the configuration and is not tried again.
"""

import asyncio
import enum
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.clock import Clock
from runtime.domain.restarts import RestartPolicy, Restarts
from runtime.errors import StartError
from runtime.ids import WorkerId

_log = logging.getLogger(__name__)


class WorkerHost(Protocol):
    """One process, or something like one, that hosts one generation of a worker."""

    async def start(self) -> None:
        """Return once it has registered; raises `StartError` with its own words, or those of its end."""

    async def ended(self) -> str:
        """Wait for its end; returns why it came, or nothing when it left as it was asked to."""

    async def stop(self) -> None:
        """Let it leave the mesh, then end it; it may be dead already."""


class Launcher(Protocol):
    async def launch(self, worker: WorkerId) -> WorkerHost:
        """A host for the worker: a living one of an earlier controller, or a new one with a new boot id."""


class State(enum.StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting to restart"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Kept:
    """How a worker is. `why` tells of its last end, or of what keeps it from starting."""

    worker: WorkerId
    state: State
    starts: int = 0
    why: str = ""


class Keeper:
    def __init__(self, workers: Sequence[WorkerId], launcher: Launcher, policy: RestartPolicy, clock: Clock) -> None:
        self._launcher = launcher
        self._policy = policy
        self._clock = clock
        self._kept = {worker: Kept(worker, State.STARTING) for worker in workers}
        self._hosts: dict[WorkerId, WorkerHost] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Keep all of them until cancelled, or until none is left that could be started again.

        Cancelling stops no worker, so that the next keeper finds them serving.
        """
        async with asyncio.TaskGroup() as group:
            for worker in self._kept:
                group.create_task(self._keep(worker))

    def report(self) -> tuple[Kept, ...]:
        return tuple(self._kept.values())

    async def reports(self) -> AsyncIterator[tuple[Kept, ...]]:
        """The current report, then the newest one after each change."""
        while True:
            changed = self._changed
            yield self.report()
            await changed.wait()

    async def stop(self) -> None:
        """Stop all workers, side by side. Only once `run` was cancelled, or it would start them again."""
        async with asyncio.TaskGroup() as group:
            for host in self._hosts.values():
                group.create_task(host.stop())
        for worker in self._kept:
            self._now(worker, State.STOPPED)

    async def _keep(self, worker: WorkerId) -> None:
        restarts = Restarts(self._policy)
        while await self._live(worker):
            wait = restarts.died(self._clock.now())
            if wait is None:
                self._now(worker, State.FAILED)
                _log.error("worker is in a crash loop and is not started again", extra={"worker": worker})
                return
            self._now(worker, State.WAITING)
            await self._clock.sleep(wait)

    async def _live(self, worker: WorkerId) -> bool:
        """One life of a worker; False when it never was one, or nobody wants another."""
        self._now(worker, State.STARTING, starts=self._kept[worker].starts + 1)
        host = self._hosts[worker] = await self._launcher.launch(worker)
        try:
            await host.start()
        except StartError as error:
            await host.stop()
            _log.error("worker did not start: %s", error, extra={"worker": worker})
            self._now(worker, State.FAILED, str(error))
            return self._kept[worker].starts > 1
        self._now(worker, State.SERVING)
        why = await host.ended()
        if not why:
            await host.stop()
            self._now(worker, State.STOPPED, "it was drained")
            return False
        _log.warning("worker died: %s", why, extra={"worker": worker})
        await host.stop()
        self._now(worker, State.WAITING, why)
        return True

    def _now(self, worker: WorkerId, state: State, why: str | None = None, starts: int | None = None) -> None:
        kept = self._kept[worker]
        self._kept[worker] = Kept(
            worker, state, kept.starts if starts is None else starts, kept.why if why is None else why
        )
        self._changed.set()
        self._changed = asyncio.Event()
