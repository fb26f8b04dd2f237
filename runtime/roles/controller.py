"""The controller: keeps who belongs to the mesh and tells everybody; no request ever waits for it."""

import asyncio
import logging
from collections.abc import AsyncIterator

from runtime.clock import Clock
from runtime.domain.membership import Membership
from runtime.domain.messages import View, Worker
from runtime.errors import Incompatible
from runtime.ids import BootId, WorkerId

_log = logging.getLogger(__name__)


class ControllerRole:
    """`incarnation` grows with every start of the controller; `lease_s` is how long a silent worker stays. For
    `settle_s` after its start it says that workers of an earlier controller may still be about to register."""

    def __init__(self, incarnation: int, lease_s: float, clock: Clock, settle_s: float = 0.0) -> None:
        self._membership = Membership(incarnation, lease_s, settling=settle_s > 0)
        self._settle_s = settle_s
        self._lease_s = lease_s
        self._clock = clock
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Expire leases until cancelled."""
        if self._settle_s:
            await self._clock.sleep(self._settle_s)
            self._membership.settle()
            self._publish()
        while True:
            await self._clock.sleep(self._lease_s / 4)
            for worker in self._membership.expire(self._clock.now()):
                _log.warning("worker lost: its lease ran out", extra={"worker": worker.id, "boot": worker.boot})
                self._publish()

    async def register(self, worker: Worker) -> float | None:
        """Take in or renew; raises `Incompatible` naming the field. Returns the seconds within which the worker is to
        leave, if it is."""
        try:
            if self._membership.register(worker, self._clock.now()):
                _log.info("worker joined", extra={"worker": worker.id, "boot": worker.boot})
        except Incompatible as error:
            _log.warning("worker refused: %s", error.message, extra={"worker": worker.id, "boot": worker.boot})
            raise
        finally:
            self._publish()
        leaves_at = self._membership.leaves_at(worker.boot)
        return None if leaves_at is None else max(leaves_at - self._clock.now(), 0.0)

    async def drain(self, worker: WorkerId, grace_s: float) -> None:
        """Have a worker leave within `grace_s`; raises `NotFound`, or `FailedPrecondition` for the last to decode."""
        self._membership.drain(worker, self._clock.now() + grace_s)
        _log.info("worker is drained", extra={"worker": worker, "grace_s": grace_s})
        self._publish()

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        if self._membership.leave(worker, boot):
            self._publish()

    def view(self) -> View:
        return self._membership.view()

    async def views(self) -> AsyncIterator[View]:
        """The current view, then the newest one after each change."""
        while True:
            changed = self._changed
            yield self._membership.view()
            await changed.wait()

    def _publish(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
