"""Simulated peers: streams and calls between processes of one world, behind the ports that grpc implements.

A stream is ordered and reliable until it is reset; then both ends learn of it and what was under way is lost. A call
may fail although its work was done.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from runtime.domain.messages import GatewayCommand, Paused, PrefillCall, PrefillDone, StepBatch, Worker
from runtime.domain.steps import Forgotten
from runtime.errors import BatonError, Unavailable
from runtime.ids import GatewayId, SequenceId, SessionId
from runtime.mesh.simulated.calling import REFUSED, RESET, call, fail, failing, try_spawn
from runtime.mesh.simulated.world import Process, World, cancel, flatten, resolve
from runtime.ports import DecodeStream
from runtime.roles.decode import DecodeRole
from runtime.roles.holding import HoldingRole
from runtime.roles.mirroring import MirrorRole
from runtime.roles.prefill import PrefillRole

if TYPE_CHECKING:
    from runtime.mesh.simulated.onesided import OneSidedTransport

T = TypeVar("T")
_FORGET_S = 1.0
_SILENT = Unavailable("the worker does not answer")


class Pipe(Generic[T]):
    """One direction of a stream: what is sent arrives in this order."""

    def __init__(self, world: World, source: Process, target: Process) -> None:
        self._world = world
        self._ends = (source, target)
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()
        self._sent = 0
        self._received = 0
        self._early: dict[int, T] = {}
        self.broken = False

    def send(self, item: T) -> None:
        if self.broken:
            raise RESET
        number, self._sent = self._sent, self._sent + 1
        self._world.deliver(*self._ends, lambda: self._arrive(number, item))

    async def receive(self) -> T:
        if self.broken and self._queue.empty():
            raise RESET
        item = await self._queue.get()
        if item is None:
            raise RESET
        return item

    def reset(self) -> None:
        if not self.broken:
            self.broken = True
            self._queue.put_nowait(None)

    def _arrive(self, number: int, item: T) -> None:
        if self.broken:
            return
        self._early[number] = item
        while self._received in self._early:
            self._queue.put_nowait(self._early.pop(self._received))
            self._received += 1


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
    """A worker process: what answers at its address. `rests` is what it was told of sessions that pause: when, and for
    how long their KV is kept from then on, both in seconds."""

    def __init__(
        self, process: Process, role: DecodeRole | PrefillRole, holding: HoldingRole, mirror: MirrorRole
    ) -> None:
        self.process = process
        self.role = role
        self.holding = holding
        self.mirror = mirror
        self.rests: dict[SequenceId, tuple[float, float]] = {}
        self.group: asyncio.TaskGroup

    async def main(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            for each in (self.role, self.holding, self.mirror):
                self.group.create_task(each.run())


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
            raise REFUSED
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
        serving = try_spawn(host.group, _serve_decode(host, GatewayId(self._process.name), connection))
        if serving is None:
            raise REFUSED
        host.process.at_death(connection.reset)
        self._process.at_death(connection.reset)
        self._network.connections.append(connection)
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
                if isinstance(command, Paused):
                    host.rests[command.ref.sequence] = host.process.world.loop.time(), command.keep_ms / 1000
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

    async def prefill(self, asked: PrefillCall) -> PrefillDone:
        network, world = self._network, self._network.world
        host = await network.connect(self._process, self._address)
        assert isinstance(host.role, PrefillRole)
        if world.chance(world.weather.lose):
            raise RESET
        answer: asyncio.Future[PrefillDone] = world.loop.create_future()
        host.process.at_death(lambda: fail(answer, RESET))
        serving = try_spawn(host.group, _serve_prefill(world, host, self._process, asked, answer))
        if serving is None:
            raise REFUSED
        self._process.at_death(lambda: host.process.when_awake(lambda: cancel(serving)))
        try:
            done = await answer
        finally:
            world.deliver(self._process, host.process, lambda: cancel(serving))
        if world.chance(world.weather.lose):
            raise RESET
        return done


async def _serve_prefill(
    world: World, host: Host, caller: Process, asked: PrefillCall, answer: "asyncio.Future[PrefillDone]"
) -> None:
    assert isinstance(host.role, PrefillRole)
    try:
        done = await host.role.prefill(asked)
    except BatonError as error:
        world.deliver(host.process, caller, failing(answer, error))
    except ExceptionGroup as group:
        errors = flatten(group)
        first = next((error for error in errors if isinstance(error, BatonError)), None)
        if first is None or not all(isinstance(error, BatonError) for error in errors):
            raise
        world.deliver(host.process, caller, failing(answer, first))
    else:
        world.deliver(host.process, caller, lambda: resolve(answer, done))


class SimulatedKeepers:
    """Workers, as whoever erases a session reaches them."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def keeper(self, worker: Worker) -> "SimulatedKeeper":
        return SimulatedKeeper(self._network, self._process, worker.address)


class SimulatedKeeper:
    def __init__(self, network: Network, process: Process, address: str) -> None:
        self._network = network
        self._process = process
        self._address = address

    async def forget(self, session: SessionId) -> Forgotten:
        host = self._network.hosts.get(self._address)
        if host is None:
            raise REFUSED
        work = partial(host.holding.forget_session, session)
        return await call(self._process, host.process, lambda: host.group, work, seconds=_FORGET_S, late=_SILENT)
