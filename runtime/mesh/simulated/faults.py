"""What can go wrong in a simulated mesh, and how it is made to."""

import asyncio
from typing import TYPE_CHECKING

from runtime.errors import BatonError, Unavailable
from runtime.ids import WorkerId
from runtime.mesh.simulated.fleet import Fleet
from runtime.mesh.simulated.registry import SimulatedDirectory
from runtime.mesh.simulated.scenario import Fault
from runtime.mesh.simulated.world import Process
from runtime.roles.decode import DecodeRole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_JUMP_S = 300.0
_FAIL_EVERY_S = 0.02


class Faults:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._world = fleet.world
        self._kinds: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "part": self._part,
            "halfpart": self._halfpart,
            "reset": self._reset,
            "drain": self._drain,
            "fail": self._fail,
            "stop": self._stop,
            "store": self._store,
            "control": self._control,
            "jump": self._jump,
        }

    async def suffer(self, fault: Fault) -> None:
        """At its time."""
        await asyncio.sleep(fault.at)
        await self._kinds[fault.kind](fault)

    async def _kill(self, fault: Fault) -> None:
        self._told(fault, self._victim(fault)).kill()

    async def _freeze(self, fault: Fault) -> None:
        self._told(fault, self._victim(fault)).freeze(fault.seconds)

    async def _part(self, fault: Fault) -> None:
        await self._halfpart(fault)
        self._world.part(self._other(fault), self._victim(fault), fault.seconds)

    async def _halfpart(self, fault: Fault) -> None:
        """What one says does not reach the other, who is heard."""
        self._world.part(self._told(fault, self._victim(fault)), self._other(fault), fault.seconds)

    async def _reset(self, fault: Fault) -> None:
        self._fleet.network.reset_some()

    async def _drain(self, fault: Fault) -> None:
        """A person has a worker leave, within a second or so."""
        nodes = [*self._fleet.nodes]
        name = nodes[fault.victim % len(nodes)]
        self._world.say("fault", f"drain {name} within {fault.seconds / 4:.2f} s")
        directory = SimulatedDirectory(self._fleet.controller, self._fleet.controller.process)
        try:
            await directory.drain(WorkerId(name), fault.seconds / 4)
        except BatonError as error:
            self._world.say("fault", f"not drained: {error.message}")

    async def _fail(self, fault: Fault) -> None:
        """One decode worker, or each of them, fails all that it is given."""
        roles = [node.role for node in self._fleet.nodes.values() if isinstance(node.role, DecodeRole)]
        sick = roles if fault.victim % 2 else roles[:1]
        self._world.say("fault", f"{len(sick)} decode workers fail for {fault.seconds / 2:.2f} s")
        until = self._world.loop.time() + fault.seconds / 2
        while self._world.loop.time() < until:
            for role in sick:
                role.give_up(Unavailable("it is sick"))
            await asyncio.sleep(_FAIL_EVERY_S)

    async def _stop(self, fault: Fault) -> None:
        """A gateway is asked to leave."""
        living = [each.process for each in self._fleet.gateways.values() if each.process.alive]
        if living:
            await self._told(fault, living[fault.victim % len(living)]).stop()

    async def _store(self, fault: Fault) -> None:
        process = self._told(fault, self._fleet.store.process)
        if fault.victim % 2:
            process.kill()
        else:
            process.freeze(fault.seconds)

    async def _control(self, fault: Fault) -> None:
        process = self._told(fault, self._fleet.controller.process)
        if fault.victim % 3:
            process.kill()
        else:
            process.freeze(fault.seconds)

    async def _jump(self, fault: Fault) -> None:
        """A machine slept, and its clock tells; or somebody set the store's clock."""
        if fault.victim % 2:
            self._told(fault, self._fleet.store.process)
            self._fleet.store.skew_s += _JUMP_S if fault.victim % 4 == 1 else -fault.seconds
        else:
            self._told(fault, self._victim(fault)).ahead_s += _JUMP_S

    def _victim(self, fault: Fault) -> Process:
        processes = self._fleet.processes()
        return processes[fault.victim % len(processes)]

    def _other(self, fault: Fault) -> Process:
        processes = self._fleet.processes()
        return processes[(fault.victim // 7) % len(processes)]

    def _told(self, fault: Fault, victim: Process) -> Process:
        self._world.say("fault", f"{fault.kind} {victim.name} for {fault.seconds:.2f} s")
        return victim
