"""One trial: a whole mesh in one process and virtual time, through one scenario, judged by the numbered invariants.

The roles, state tables, engines' batching and paging are the production code; only the world around the ports is
simulated.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

from runtime.domain.batching import Limits
from runtime.domain.generation import Generation
from runtime.domain.messages import Worker
from runtime.domain.routing import DECODE, PREFILL, Placement, Router
from runtime.domain.sources import Policy
from runtime.engine.simulated import SimulatedEngine, SimulatedTokenizer, StepProfile, simulated_spec
from runtime.errors import BatonError
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.mesh.simulated.checker import Checker, Client
from runtime.mesh.simulated.network import Host, Network, SimulatedDirectory
from runtime.mesh.simulated.onesided import OneSidedTransport
from runtime.mesh.simulated.scenario import Ask, Fault, make_scenario
from runtime.mesh.simulated.world import Process, World
from runtime.roles.controller import ControllerRole
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.gateway import GatewayRole, GatewaySettings, ServedModel
from runtime.roles.prefill import PrefillRole
from runtime.roles.stream import StreamSettings

TENANT = TenantId("default")
_SALT = b"simulated tenant secret"
_PAGE_TOKENS = 4
_SPEC = simulated_spec("simulated", _PAGE_TOKENS, max_tokens=96)
_HOLD_S = 2.0
_LEASE_S = 2.0
_POLICY = Policy(remote_min_tokens=6, detached_tokens=64, transfers=2)
_DECODE = DecodeSettings(_POLICY, progress_s=0.8, grace_s=2.0, heartbeat_s=0.4)
_GATEWAY = GatewaySettings(StreamSettings(attach_s=0.8, silence_s=1.2), placement_s=4.0, overdue_s=2.5)
_PROFILE = StepProfile(base_ms=4.0, token_ms=0.3, sequence_ms=0.2)
_LIVES_AGAIN_S = 0.8


@dataclass(slots=True)
class _Gateway:
    process: Process
    role: GatewayRole
    group: asyncio.TaskGroup = field(init=False)

    async def main(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            self.group.create_task(self.role.run())


@dataclass(slots=True)
class Node:
    """A worker process with what the checker looks at."""

    host: Host
    role: DecodeRole | PrefillRole
    engine: SimulatedEngine
    transport: OneSidedTransport


class Trial:
    def __init__(self, seed: int, *, tracing: bool) -> None:
        self.scenario = make_scenario(seed)
        self._seed = seed
        self._tracing = tracing
        self._nodes: dict[str, Node] = {}
        self._gateways: list[_Gateway] = []
        self._clients: list[Client] = []

    async def run(self) -> World:
        """Play the scenario to its end; what was violated stands in the world's failures."""
        try:
            async with asyncio.TaskGroup() as group:
                self.world = World(self._seed, group)
                self.world.weather = self.scenario.weather
                self.world.trace = [] if self._tracing else None
                self._build()
                await self._play()
                for process in self._processes():
                    process.kill()
                self._controller.kill()
                self._watch.cancel()
        except* AssertionError as failed:
            self.world.report(failed)
        return self.world

    def _build(self) -> None:
        self.network = Network(self.world)
        self.checker = Checker(self.world)
        self.ids = Ids(random.Random(self.world.rng.getrandbits(64)))
        self._controller = Process(self.world, "controller")
        self.controller = ControllerRole(1, _LEASE_S, self._controller)
        self._controller.run(self.controller.run())
        for number in range(self.scenario.prefill):
            self._start_worker(f"prefill-{number}", PREFILL)
        for number in range(self.scenario.decode):
            self._start_worker(f"decode-{number}", DECODE)
        for number in range(self.scenario.gateways):
            self._start_gateway(f"gw-{number}")

    def _start_worker(self, name: str, kind: str) -> None:
        process = Process(self.world, name)
        boot = self.ids.boot()
        limits = Limits(step_tokens=16, max_running=self.scenario.max_running)
        engine = SimulatedEngine(_SPEC, self.scenario.pages, limits, _PROFILE, process)
        transport = OneSidedTransport(
            self.world, process, name, self.network.transports, _SPEC, self.scenario.slots, _HOLD_S
        )
        role = self._role(kind, process, boot, engine, transport)
        host = Host(process, role)
        self.network.hosts[name] = host
        self.network.transports[name] = transport
        self._nodes[name] = Node(host, role, engine, transport)
        process.run(self._worker_main(host, kind, boot))

    def _role(
        self, kind: str, process: Process, boot: BootId, engine: SimulatedEngine, transport: OneSidedTransport
    ) -> DecodeRole | PrefillRole:
        tenants = {TENANT: _SALT}
        if kind == PREFILL:
            return PrefillRole(engine, transport, tenants)
        observe = self.checker.observer(process.name)
        peers = self.network.peers(process)
        return DecodeRole(engine, transport, peers, tenants, boot, self.ids, process, _DECODE, observe)

    async def _worker_main(self, host: Host, kind: str, boot: BootId) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(host.main())
            while True:
                name = host.process.name
                worker = Worker(
                    WorkerId(name), boot, kind, name, _SPEC.name, _SPEC.kv_fingerprint, _SPEC.serving_fingerprint,
                    _SPEC.max_tokens, _SPEC.page_tokens, "simulated", host.role.engine.load(),
                )  # fmt: skip
                await self.controller.register(worker)
                await host.process.sleep(_LEASE_S / 3)

    def _start_gateway(self, name: str) -> None:
        process = Process(self.world, name)
        model = ServedModel(_SPEC, SimulatedTokenizer(), created=0)
        role = GatewayRole(
            GatewayId(name), (model,), Router(Placement.LEAST_LOADED), SimulatedDirectory(self.controller),
            self.network.peers(process), self.ids, process, _GATEWAY, self.checker.observer(name),
        )  # fmt: skip
        gateway = _Gateway(process, role)
        self._gateways.append(gateway)
        process.run(gateway.main())

    async def _play(self) -> None:
        group = self.world.group
        self._watch = group.create_task(self._watch_pages())
        faults = [group.create_task(self._suffer(fault)) for fault in self.scenario.faults]
        asks = [group.create_task(self._ask(ask)) for ask in self.scenario.asks]
        await asyncio.gather(*asks, *faults)
        ends = max((client.must_end for client in self._clients), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                await asyncio.gather(*(client.over.wait() for client in self._clients))
        self.world.calm()
        for process in self._processes():
            process.thaws = 0.0
        for client in self._clients:
            self.checker.judge(client)
        await self._settle()

    async def _ask(self, ask: Ask) -> None:
        await asyncio.sleep(ask.at)
        alive = [gateway for gateway in self._gateways if gateway.process.alive]
        gateway = self.world.rng.choice(alive)
        await gateway.role.wait_ready()
        patience = sum(fault.seconds for fault in self.scenario.faults if fault.kind == "freeze")
        client = Client(ask, self.world.loop.time(), patience)
        self._clients.append(client)
        gateway.process.at_death(client.orphan)
        gateway.group.create_task(self._consume(gateway, client))

    async def _consume(self, gateway: _Gateway, client: Client) -> None:
        ask = client.ask
        priority = ask.sampling.seed % 3 - 1
        generation = Generation(_SPEC.name, ask.prompt, ask.sampling, TENANT, ask.deadline_s, priority)
        try:
            async with asyncio.timeout(ask.leaves_after), gateway.role.open(generation) as deltas:
                async for delta in deltas:
                    client.take(delta, self.world)
            client.end(self.world, None)
        except TimeoutError:
            client.end(self.world, None)
        except BatonError as error:
            client.end(self.world, error)

    async def _suffer(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        processes = self._processes()
        victim = processes[fault.victim % len(processes)]
        other = processes[(fault.victim // 7) % len(processes)]
        self.world.say("fault", f"{fault.kind} {victim.name} for {fault.seconds:.2f} s")
        match fault.kind:
            case "freeze":
                victim.freeze(fault.seconds)
            case "part" if other is not victim:
                self.world.part(victim, other, fault.seconds)
            case "reset":
                self.network.reset_some()
            case "kill":
                await self._kill(victim)

    async def _kill(self, victim: Process) -> None:
        gateways = [gateway for gateway in self._gateways if gateway.process.alive]
        if victim.name not in self._nodes:
            if len(gateways) > 1:
                victim.kill()
            return
        victim.kill()
        await asyncio.sleep(_LIVES_AGAIN_S)
        self._start_worker(victim.name, PREFILL if victim.name.startswith("prefill") else DECODE)

    def _processes(self) -> list[Process]:
        gateways = [gateway.process for gateway in self._gateways]
        return [process for process in [*(n.host.process for n in self._nodes.values()), *gateways] if process.alive]

    async def _watch_pages(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for node in self._nodes.values():
                self.checker.audit(node.engine, node.transport)

    async def _settle(self) -> None:
        """Once idle, everything is zero: after the longest grace and hold, with room for a straggler."""
        until = self.world.loop.time() + _DECODE.grace_s + _HOLD_S + 4.0
        while self.world.loop.time() < until:
            await asyncio.sleep(0.25)
            if not any(self._left().values()):
                return
        for name, left in self._left().items():
            if left:
                self.world.violated(16, f"idle, but {name} still holds {left}")

    def _left(self) -> dict[str, str]:
        left = {name: self.checker.held(node.role, node.engine, node.transport) for name, node in self._nodes.items()}
        for gateway in self._gateways:
            if gateway.process.alive and gateway.role.in_flight():
                left[gateway.process.name] = f"{gateway.role.in_flight()} turns"
        return left
