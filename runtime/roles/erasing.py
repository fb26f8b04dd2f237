"""A gateway's part in erasing sessions: first the store, then every worker that has something of it, or could get it.

Workers that come later are told as well, for as long as a gateway that froze could still start a turn of it there.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from runtime.clock import Clock
from runtime.domain.erasure import Erasure, WorkerReceipt
from runtime.domain.messages import View, Worker
from runtime.errors import BatonError
from runtime.ids import BootId, SessionId, TenantId
from runtime.ports import PageKeepers
from runtime.session_store import SessionStore

_SOONER = 10
_AT_ONCE = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErasingSettings:
    """What is still to be told is looked for every `look_s`, up to `together` erasures at once and where there are more
    the next of them soon; a tombstone is told to new workers for `remember_s`."""

    look_s: float = 1.0
    together: int = 256
    remember_s: float = 3600.0


class ErasingRole:
    def __init__(
        self,
        store: SessionStore,
        keepers: PageKeepers,
        view: Callable[[], View],
        leave: Callable[[SessionId], None],
        clock: Clock,
        settings: ErasingSettings,
    ) -> None:
        """`leave` ends what runs of a session at this gateway."""
        self._store = store
        self._keepers = keepers
        self._view = view
        self._leave = leave
        self._clock = clock
        self._settings = settings
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._told: dict[SessionId, set[BootId]] = {}
        # Up to where all that is pending was looked at, and what was met since the beginning.
        self._after: Erasure | None = None
        self._met: set[SessionId] = set()

    async def run(self) -> None:
        """Tell whoever has not been told, until cancelled."""
        while True:
            try:
                await self._look()
            except BatonError as error:
                _log.warning("erased sessions cannot be looked for: %s", error.message)
            await self._clock.sleep(self._settings.look_s / (_SOONER if self._after else 1))

    async def erase(self, tenant: TenantId, session: SessionId) -> Erasure:
        """Raises `NotFound`; whoever could not be told is told later."""
        erased = await self._store.erase(tenant, session)
        await self._tell(erased)
        return await self._store.erasure(tenant, session)

    async def _look(self) -> None:
        pending = await self._store.erasures(self._after, self._settings.together)
        self._after = pending[-1] if len(pending) == self._settings.together else None
        # Together, because a worker that does not answer keeps each of them waiting.
        failed = [each for each in await asyncio.gather(*map(self._pass_on, pending)) if each is not None]
        if failed:
            raise failed[0]
        if not all(erased.scrubbed for erased in pending):
            await self._store.scrub()
        self._met |= {erased.session for erased in pending}
        if self._after is None:
            for gone in self._told.keys() - self._met:
                del self._told[gone]
            self._met = set()

    async def _pass_on(self, erased: Erasure) -> BatonError | None:
        """Why the store did not take what came of it, if so."""
        try:
            async with self._at_once:
                if await self._tell(erased):
                    await self._store.settle(erased.session, self._settings.remember_s)
        except BatonError as error:
            return error
        return None

    async def _tell(self, erased: Erasure) -> bool:
        """Whether all workers that there are have answered, and one at least."""
        if erased.session not in self._told:
            self._leave(erased.session)
        told = self._told.setdefault(erased.session, set())
        told |= {worker.boot for worker in erased.workers if worker.dropped is not None}
        left = [worker for worker in self._view().workers if worker.boot not in told]
        for worker in left:
            await self._store.told(erased.session, WorkerReceipt(worker.id, worker.boot))
        answered = await asyncio.gather(*(self._tell_one(erased.session, worker) for worker in left))
        # What is behind the pools outlives the workers: somebody has to have looked there.
        return all(answered) and bool(told)

    async def _tell_one(self, session: SessionId, worker: Worker) -> bool:
        try:
            forgotten = await self._keepers.keeper(worker).forget(session)
        except BatonError as error:
            _log.warning(
                "a worker has not forgotten an erased session yet: %s", error.message, extra={"worker": worker.id}
            )
            return False
        receipt = WorkerReceipt(worker.id, worker.boot, forgotten.dropped, forgotten.shared)
        await self._store.told(session, receipt)
        self._told.setdefault(session, set()).add(worker.boot)
        return True
