"""Simulated workers that hold pages, as others of one world call them: `ports.MirrorPeers`."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime.domain.messages import Holder
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.errors import DeadlineExceeded
from runtime.mesh.simulated.calling import call as call_there
from runtime.mesh.simulated.network import Network
from runtime.mesh.simulated.world import Process
from runtime.roles.holding import HoldingRole

T = TypeVar("T")
_LATE = DeadlineExceeded("no answer came in time")


class SimulatedHolders:
    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def holder(self, holder: Holder) -> "SimulatedHolder":
        return SimulatedHolder(self._network, self._process, holder)


class SimulatedHolder:
    """One generation of a worker: another one at its address knows nothing of the call."""

    def __init__(self, network: Network, process: Process, holder: Holder) -> None:
        self._network = network
        self._process = process
        self._holder = holder

    async def keep(self, call: KeepCall) -> Kept:
        return await self._asked(call.remaining_ms, lambda holding: holding.keep(call))

    async def fetch(self, call: FetchCall) -> Fetched:
        return await self._asked(call.ticket.remaining_ms, lambda holding: holding.fetch(call))

    async def _asked(self, remaining_ms: int, work: Callable[[HoldingRole], Awaitable[T]]) -> T:
        host = await self._network.connect(self._process, self._holder.address)
        seconds = remaining_ms / 1000
        return await call_there(
            self._process, host.process, lambda: host.group, lambda: work(host.holding), seconds=seconds, late=_LATE
        )
