"""A simulated directory: workers and gateways reach the controller of the moment over the simulated network.

The twin of `clients/directory.py`: the same deadlines, the same errors, the same patience.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from runtime.domain.messages import View, Worker
from runtime.errors import BatonError, DeadlineExceeded
from runtime.ids import BootId, WorkerId
from runtime.mesh.simulated.calling import call
from runtime.mesh.simulated.network import Pipe
from runtime.mesh.simulated.world import Process, World, cancel
from runtime.roles.controller import ControllerRole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_CALL_S = 1.0
_AGAIN_S = 0.2
_LATE = DeadlineExceeded("the controller did not answer in time")


class Controller:
    """The controller at its address: one after the other, each of a higher incarnation."""

    def __init__(self, world: World, lease_s: float) -> None:
        self.process: Process
        self.role: ControllerRole
        self.group: asyncio.TaskGroup
        self._world = world
        self._lease_s = lease_s
        self._incarnation = 0

    def start(self) -> None:
        self._incarnation += 1
        self.process = Process(self._world, "controller", self._world.rng.uniform(0, 600))
        self.role = ControllerRole(self._incarnation, self._lease_s, self.process, settle_s=self._lease_s)
        self.process.run(self._main(self.role))

    async def _main(self, role: ControllerRole) -> None:
        async with asyncio.TaskGroup() as self.group:
            await role.run()


class SimulatedDirectory:
    def __init__(self, controller: Controller, process: Process) -> None:
        self._controller = controller
        self._process = process

    async def register(self, worker: Worker) -> float | None:
        role = self._controller.role
        return await self._call(lambda: role.register(worker))

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        self._process.leaving = True
        role = self._controller.role
        await self._call(lambda: role.leave(worker, boot))

    async def drain(self, worker: WorkerId, grace_s: float) -> None:
        role = self._controller.role
        await self._call(lambda: role.drain(worker, grace_s))

    async def views(self) -> AsyncIterator[View]:
        """Never ends and never raises."""
        while True:
            controller = self._controller
            await self._process.sleep(self._process.world.delay())
            if controller.process.alive:
                pipe: Pipe[View] = Pipe(self._process.world, controller.process, self._process)
                controller.process.at_death(pipe.reset)
                telling = controller.group.create_task(_tell(controller.role, pipe))
                self._process.at_death(lambda telling=telling: cancel(telling))  # type: ignore[misc]
                try:
                    while True:
                        yield await pipe.receive()
                except BatonError:
                    pass
            await self._process.sleep(_AGAIN_S)

    async def _call(self, work: "Callable[[], Awaitable[float | None]]") -> float | None:
        here = self._controller
        return await call(self._process, here.process, lambda: here.group, work, seconds=_CALL_S, late=_LATE)


async def _tell(role: ControllerRole, pipe: Pipe[View]) -> None:
    try:
        async for view in role.views():
            pipe.send(view)
    except BatonError:
        return
