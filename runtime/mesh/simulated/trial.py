"""One trial: a whole mesh in one process and virtual time, through one scenario, judged by the numbered invariants.

The roles, state tables, engines' batching and paging, and the store's transactions are the production code; only the
world around the ports is simulated.
"""

import asyncio
from contextlib import suppress

from runtime.domain.generation import Generation
from runtime.domain.routing import DECODE
from runtime.domain.sequence import Sampling
from runtime.errors import BatonError
from runtime.ids import BootId
from runtime.mesh.checking.histories import Histories
from runtime.mesh.simulated.calling import try_spawn
from runtime.mesh.simulated.checker import Checker, Client, SimulatedOracle
from runtime.mesh.simulated.database import StoreWeather
from runtime.mesh.simulated.faults import Faults
from runtime.mesh.simulated.fleet import GRACE_S, HOLD_S, KEEP_S, LONGEST_OPEN_S, SESSIONS, TENANT, Fleet, Gateway
from runtime.mesh.simulated.scenario import Ask, make_scenario
from runtime.mesh.simulated.users import Room
from runtime.mesh.simulated.world import World
from runtime.store import erasing
from runtime.store.transaction import Transaction

_UNFINISHED = "SELECT COUNT(*) FROM turns WHERE status IN ('queued', 'running')"
_LOOK_S = 0.25
_ERASURES = 1000
# After the storm: the longest deadline of a turn, and what its next owner needs to find it.
_CALM_S = 20.0 + 2 * (SESSIONS.lease_s + SESSIONS.store_grace_s) + 5.0
_PROBE = Sampling(max_tokens=1, temperature=0)


class Trial:
    def __init__(self, seed: int, *, tracing: bool) -> None:
        self.scenario = make_scenario(seed)
        self._seed = seed
        self._tracing = tracing
        self._clients: list[Client] = []

    async def run(self) -> World:
        """Play the scenario to its end; what was violated stands in the world's failures."""
        try:
            async with asyncio.TaskGroup() as group:
                self.world = World(self._seed, group)
                self.world.weather = self.scenario.weather
                self.world.trace = [] if self._tracing else None
                self.checker = Checker(self.world)
                self.fleet = Fleet(self.world, self.scenario, self.checker)
                self.fleet.start()
                self._watch = group.create_task(self._look_on())
                try:
                    await self._play()
                finally:
                    self._watch.cancel()
                    self.fleet.stop()
        except* AssertionError as failed:
            self.world.report(failed)
        return self.world

    async def _play(self) -> None:
        group, faults = self.world.group, Faults(self.fleet)
        await self._started()
        suffering = [group.create_task(faults.suffer(fault)) for fault in self.scenario.faults]
        asks = [group.create_task(self._ask(ask)) for ask in self.scenario.asks]
        rooms = [group.create_task(Room(self.fleet, self.checker, talk).run()) for talk in self.scenario.talks]
        await asyncio.gather(*asks, *suffering)
        ends = max((client.must_end for client in self._clients), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                await asyncio.gather(*(client.over.wait() for client in self._clients))
        await self._calm()
        for client in self._clients:
            self.checker.judge(client)
        await self._users_end(rooms)
        await self._turns_end()
        await self._settle()
        await self._nothing_is_kept()
        await self._erased_are_gone()
        await self._everybody_is_used()
        self._judge_store()

    async def _started(self) -> None:
        """A mesh that has its first workers."""
        while not all(map(_serves, self._gateways())):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)

    async def _calm(self) -> None:
        """The storm is over."""
        self.world.calm()
        self.fleet.store.weather = StoreWeather()
        thawed = max((process.thaws for process in self.fleet.processes()), default=0.0)
        await asyncio.sleep(max(thawed - self.world.loop.time(), 0.0))

    def _gateways(self) -> list[Gateway]:
        return [each for each in self.fleet.gateways.values() if each.process.alive]

    async def _ask(self, ask: Ask) -> None:
        await asyncio.sleep(ask.at)
        gateway = await self.fleet.some_gateway()
        while not _serves(gateway):
            await asyncio.sleep(0.05)
            gateway = await self.fleet.some_gateway()
        patience = sum(fault.seconds for fault in self.scenario.faults if fault.kind == "freeze")
        client = Client(ask, self.world.loop.time(), patience)
        self._clients.append(client)
        gateway.process.at_death(client.orphan)
        if try_spawn(gateway.group, self._consume(gateway, client)) is None:
            client.orphan()

    async def _consume(self, gateway: Gateway, client: Client) -> None:
        ask = client.ask
        priority = ask.sampling.seed % 3 - 1
        generation = Generation(self.fleet.spec.name, ask.prompt, ask.sampling, TENANT, ask.deadline_s, priority)
        try:
            async with asyncio.timeout(ask.leaves_after), gateway.role.open(generation) as deltas:
                async for delta in deltas:
                    client.take(delta, self.world)
            client.end(self.world, None)
        except TimeoutError:
            client.end(self.world, None)
        except BatonError as error:
            client.end(self.world, error)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for node in self.fleet.nodes.values():
                self.checker.audit(node.engine, node.transport)
                self.checker.kept(node.host, node.boot, node.engine, KEEP_S)
            members = self.fleet.members()
            for gateway in self._gateways():
                self.checker.believed(gateway.role.gateway, gateway.role.view(), members)

    async def _users_end(self, rooms: "list[asyncio.Task[None]]") -> None:
        """Every user comes to the end of his script."""
        if not rooms:
            return
        done, waiting = await asyncio.wait(rooms, timeout=_CALM_S)
        for room in waiting:
            room.cancel()
            self.world.violated(17, "a session's user still waits although all is calm")
        for room in done:
            room.result()

    async def _turns_end(self) -> None:
        """Every turn comes to its end, whoever opened it (invariant 17); which ones do not, the histories tell."""
        until = self.world.loop.time() + _CALM_S
        while self.world.loop.time() < until and self.fleet.store.look(_unfinished):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    async def _settle(self) -> None:
        """Once idle, everything is zero: after the longest grace and hold, with room for a straggler."""
        until = self.world.loop.time() + GRACE_S + HOLD_S + 4.0
        while self.world.loop.time() < until:
            await asyncio.sleep(_LOOK_S)
            if not any(self._left().values()):
                return
        for name, left in self._left().items():
            if left:
                self.world.violated(16, f"idle, but {name} still holds {left}")

    async def _nothing_is_kept(self) -> None:
        """Once nobody is served, all grants come to their end."""
        await asyncio.sleep(KEEP_S + _LOOK_S)
        for name, node in self.fleet.nodes.items():
            if kept := len(node.engine.core.grants):
                self.world.violated(11, f"nobody was served for {KEEP_S} s, and {name} keeps {kept} pages")

    def _left(self) -> dict[str, str]:
        nodes = self.fleet.nodes.items()
        left = {name: self.checker.held(node.host, node.engine, node.transport) for name, node in nodes}
        for gateway in self._gateways():
            turns = gateway.role.in_flight() + gateway.sessions.running()
            if turns:
                left[gateway.process.name] = f"{turns} turns"
        return left

    async def _erased_are_gone(self) -> None:
        """Every worker has dropped what it had of an erased session, and takes nothing of it (invariant 13)."""
        if not self.checker.erased:
            return
        until = self.world.loop.time() + _CALM_S
        while self.world.loop.time() < until and self._untold():  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(_LOOK_S)
        for told in self._untold():
            self.world.violated(13, told)
        for name, node in self.fleet.nodes.items():
            for session in self.checker.erased:
                if pages := node.engine.pages_of(session):
                    self.world.violated(13, f"{name} still has {pages} pages of {session}, which was erased")

    def _untold(self) -> list[str]:
        """Who should have been told of an erasure, and has not answered."""
        erased = self.fleet.store.look(lambda tx: erasing.pending(tx, None, _ERASURES))
        told = {(each.session, worker.boot) for each in erased for worker in each.workers if worker.dropped is not None}
        return [
            f"{name} has not been told that {each.session} was erased"
            for each in erased
            for name, boot in self.fleet.members().items()
            if (each.session, boot) not in told
        ]

    async def _everybody_is_used(self) -> None:
        """What was avoided while it failed is used again once it does not (invariant 19)."""
        if not self.scenario.faults:
            return
        await asyncio.sleep(LONGEST_OPEN_S + _LOOK_S)
        for gateway in self._gateways():
            able = {
                worker.boot: worker.id
                for worker in gateway.role.view().workers
                if worker.role == DECODE and not worker.draining
            }
            asking = [gateway.group.create_task(self._probe(gateway)) for _ in range(2 * len(able))]
            used = {boot for boot in await asyncio.gather(*asking, return_exceptions=True) if isinstance(boot, str)}
            for boot in able.keys() - used:
                self.world.violated(19, f"{gateway.process.name} uses {able[boot]} no more although all is calm")

    async def _probe(self, gateway: Gateway) -> BootId | None:
        async with gateway.role.open(Generation(self.fleet.spec.name, (97,), _PROBE, TENANT, 5.0)) as deltas:
            return (await anext(deltas)).boot

    def _judge_store(self) -> None:
        async def judge(tx: Transaction) -> None:
            await Histories(tx, SimulatedOracle(), self.checker.ledger.booked, self.world.violated).judge()

        self.fleet.store.look(judge)


def _serves(gateway: Gateway) -> bool:
    return any(worker.role == DECODE for worker in gateway.role.view().workers)


async def _unfinished(tx: Transaction) -> bool:
    row = await tx.row(_UNFINISHED)
    return bool(row and row[0])
