"""Simulated peers: streams and calls between processes of one world, behind the ports that grpc implements.

A stream is ordered and reliable until it is reset; then both ends learn of it and what was under way is lost. A call
may fail although its work was done.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from runtime.domain.messages import GatewayCommand, PrefillCall, PrefillDone, StepBatch, View, Worker
from runtime.errors import BatonError, Unavailable
from runtime.ids import BootId, GatewayId, WorkerId
from runtime.mesh.simulated.world import Process, World, cancel, flatten, resolve
from runtime.ports import DecodeStream
from runtime.roles.controller import ControllerRole
from runtime.roles.decode import DecodeRole
from runtime.roles.prefill import PrefillRole

if TYPE_CHECKING:
    from runtime.mesh.simulated.onesided import OneSidedTransport

T = TypeVar("T")
_RESET = Unavailable("the connection was reset")
_REFUSED = Unavailable("the connection was refused")


class Pipe(Generic[T]):
    """One direction of a stream."""

    def __init__(self, world: World, source: Process, target: Process) -> None:
        self._world = world
        self._ends = (source, target)
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()
        self._last = 0.0
        self.broken = False

    def send(self, item: T) -> None:
        if self.broken:
            raise _RESET
        self._last = self._world.deliver(*self._ends, lambda: self._arrive(item), not_before=self._last)

    async def receive(self) -> T:
        if self.broken and self._queue.empty():
            raise _RESET
        item = await self._queue.get()
        if item is None:
            raise _RESET
        return item

    def reset(self) -> None:
        if not self.broken:
            self.broken = True
            self._queue.put_nowait(None)

    def _arrive(self, item: T) -> None:
        if not self.broken:
            self._queue.put_nowait(item)


class Connection:
    """A gateway's stream to a decode worker, seen from the gateway."""

    def __init__(self, world: World, gateway: Process, worker: Process) -> None:
        self.commands: Pipe[GatewayCommand] = Pipe(world, gateway, worker)
        self.outputs: Pipe[StepBatch] = Pipe(world, worker, gateway)

    async def send(self, *commands: GatewayCommand) -> None:
        for command in commands:
            self.commands.send(command)

    async def batches(self) -> AsyncIterator[StepBatch]:
        while True:
            yield await self.outputs.receive()

    def reset(self) -> None:
        self.commands.reset()
        self.outputs.reset()


class Host:
    """A worker process: what answers at its address."""

    def __init__(self, process: Process, role: DecodeRole | PrefillRole) -> None:
        self.process = process
        self.role = role
        self.group: asyncio.TaskGroup

    async def main(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            self.group.create_task(self.role.run())


class Network:
    """Addresses to hosts, and all connections between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts: dict[str, Host] = {}
        self.connections: list[Connection] = []
        self.transports: dict[str, OneSidedTransport] = {}

    def peers(self, process: Process) -> "SimulatedPeers":
        return SimulatedPeers(self, process)

    async def transit(self, source: Process, target: Process) -> None:
        """One message's way, for calls that wait for an answer."""
        arrived: asyncio.Future[None] = self.world.loop.create_future()
        self.world.deliver(source, target, lambda: resolve(arrived, None))
        await arrived

    def reset_some(self) -> None:
        live = [connection for connection in self.connections if not connection.outputs.broken]
        if live:
            self.world.rng.choice(live).reset()

    async def connect(self, source: Process, address: str) -> Host:
        """The host at an address; refused when it is dead, for ever away while it is frozen or parted."""
        host = self.hosts.get(address)
        if host is None or not host.process.alive:
            await source.sleep(self.world.delay())
            raise _REFUSED
        await self.transit(source, host.process)
        return host


class SimulatedPeers:
    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def prefill(self, address: str) -> "SimulatedPrefillPeer":
        return SimulatedPrefillPeer(self._network, self._process, address)

    def decode(self, address: str) -> "SimulatedDecodePeer":
        return SimulatedDecodePeer(self._network, self._process, address)


class SimulatedDecodePeer:
    def __init__(self, network: Network, process: Process, address: str) -> None:
        self._network = network
        self._process = process
        self._address = address

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[DecodeStream]:
        host = await self._network.connect(self._process, self._address)
        connection = Connection(self._network.world, self._process, host.process)
        host.process.at_death(connection.reset)
        self._process.at_death(connection.reset)
        self._network.connections.append(connection)
        serving = host.group.create_task(_serve_decode(host, GatewayId(self._process.name), connection))
        try:
            yield connection
        finally:
            self._network.world.deliver(self._process, host.process, lambda: cancel(serving))
            self._network.connections.remove(connection)
            connection.outputs.reset()


async def _serve_decode(host: Host, gateway: GatewayId, connection: Connection) -> None:
    assert isinstance(host.role, DecodeRole)
    try:
        async with host.role.attach(gateway) as link, asyncio.TaskGroup() as group:
            writer = group.create_task(_write(link.batches(), connection))
            while True:
                command = await connection.commands.receive()
                link.command(command)
                if writer.done():
                    break
    except* Unavailable:
        connection.reset()


async def _write(batches: AsyncIterator[StepBatch], connection: Connection) -> None:
    async for batch in batches:
        connection.outputs.send(batch)
    connection.reset()


class SimulatedPrefillPeer:
    def __init__(self, network: Network, process: Process, address: str) -> None:
        self._network = network
        self._process = process
        self._address = address

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        network, world = self._network, self._network.world
        host = await network.connect(self._process, self._address)
        assert isinstance(host.role, PrefillRole)
        if world.chance(world.weather.lose):
            raise _RESET
        answer: asyncio.Future[PrefillDone] = world.loop.create_future()
        host.process.at_death(lambda: _fail(answer, _RESET))
        serving = host.group.create_task(_serve_prefill(world, host, self._process, call, answer))
        self._process.at_death(lambda: host.process.when_awake(lambda: cancel(serving)))
        try:
            done = await answer
        finally:
            world.deliver(self._process, host.process, lambda: cancel(serving))
        if world.chance(world.weather.lose):
            raise _RESET
        return done


async def _serve_prefill(
    world: World, host: Host, caller: Process, call: PrefillCall, answer: "asyncio.Future[PrefillDone]"
) -> None:
    assert isinstance(host.role, PrefillRole)
    try:
        done = await host.role.prefill(call)
    except BatonError as error:
        world.deliver(host.process, caller, _failing(answer, error))
    except ExceptionGroup as group:
        errors = flatten(group)
        first = next((error for error in errors if isinstance(error, BatonError)), None)
        if first is None or not all(isinstance(error, BatonError) for error in errors):
            raise
        world.deliver(host.process, caller, _failing(answer, first))
    else:
        world.deliver(host.process, caller, lambda: resolve(answer, done))


def _failing(answer: "asyncio.Future[PrefillDone]", error: BatonError) -> Callable[[], None]:
    return lambda: _fail(answer, error)


def _fail(answer: "asyncio.Future[PrefillDone]", error: BatonError) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()


class SimulatedDirectory:
    """The controller without a network: registration is not what these simulations are about yet."""

    def __init__(self, controller: ControllerRole) -> None:
        self._controller = controller

    async def register(self, worker: Worker) -> float | None:
        return await self._controller.register(worker)

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        await self._controller.leave(worker, boot)

    def views(self) -> AsyncIterator[View]:
        return self._controller.views()
