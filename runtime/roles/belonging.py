"""A worker's belonging to the mesh: it joins, renews its lease, is told to leave, and leaves. Outlives any controller.

Owns when its worker ends by itself; never what runs on it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from runtime.clock import Clock
from runtime.domain.messages import Worker
from runtime.errors import BatonError, Incompatible, Unavailable
from runtime.ports import Directory
from runtime.roles.decode import DecodeRole
from runtime.roles.prefill import PrefillRole

_LEAVE_S = 2.0
_RENEWALS_PER_LEASE = 4
_LOOK_S = 0.05
_log = logging.getLogger(__name__)


class Drained(Exception):
    """The worker has left, as it was asked to."""


def was_drained(error: BaseException) -> bool:
    """Whether that is all that ended it."""
    if isinstance(error, BaseExceptionGroup):
        return all(was_drained(each) for each in error.exceptions)
    return isinstance(error, Drained)


class Belonging:
    """`describe` says what the worker is and does now."""

    def __init__(
        self,
        directory: Directory,
        describe: Callable[[], Worker],
        role: DecodeRole | PrefillRole,
        clock: Clock,
        lease_s: float,
    ) -> None:
        self._directory = directory
        self._describe = describe
        self._role = role
        self._clock = clock
        self._lease_s = lease_s
        self._pause = lease_s / _RENEWALS_PER_LEASE

    async def join(self) -> None:
        """Raises `Incompatible`, and `Unavailable` when there is no controller."""
        await self._directory.register(self._describe())

    async def renew(self) -> None:
        """Until it is to leave, which raises `Drained`. The controller may be away for any time. That it refuses us for
        a whole lease raises `Incompatible`: a new one that settles may take a stranger for the mesh at first. Once
        asked, a worker says by itself that it leaves, also to a controller that does not know.
        """
        ends: float | None = None
        welcome = self._clock.now()
        while True:
            await self._clock.sleep(self._pause)
            here = self._describe()
            try:
                asked = await self._directory.register(replace(here, draining=ends is not None))
                welcome = self._clock.now()
            except Incompatible as error:
                asked = None
                _log.warning("the controller refuses it: %s", error.message, extra={"worker": here.id})
                if self._clock.now() - welcome >= self._lease_s:
                    raise
            except BatonError as error:  # gone, or it hangs: then it is the call's deadline that speaks
                asked = None
                _log.info("the controller is away: %s", error.message, extra={"worker": here.id})
            if asked is not None:
                ends = self._clock.now() + asked
                if isinstance(self._role, DecodeRole):
                    self._role.retaining.leave()
            if ends is not None and await self._runs_out(min(ends, self._clock.now() + self._pause), ends):
                await self.leave()
                raise Drained

    async def leave(self) -> None:
        here = self._describe()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._directory.leave(here.id, here.boot)
        except (BatonError, TimeoutError):
            _log.info("left without telling the controller, which does not answer", extra={"worker": here.id})

    async def _runs_out(self, until: float, ends: float) -> bool:
        """Wait until nothing runs here any more, but not longer than `until`; what runs at the end is given up."""
        role, clock = self._role, self._clock
        while role.running():
            if clock.now() >= until:
                break
            await clock.sleep(_LOOK_S)
        if role.running() and clock.now() >= ends:
            if isinstance(role, DecodeRole):
                role.give_up(Unavailable("the worker leaves the mesh"))
            await clock.sleep(_LOOK_S)  # so that those who are told hear it
            return True
        return not role.running()
