"""The processes of one simulated mesh: wires the production roles to the simulated world, and keeps them alive.

Whatever ends is started again, as its keeper would: a worker with another boot id, a gateway with another id, the
controller with a higher incarnation, the store with what it had committed.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from runtime.domain.batching import Limits
from runtime.domain.breaking import BreakerPolicy, RetryPolicy
from runtime.domain.messages import Holder, Worker
from runtime.domain.pages import extend_chain
from runtime.domain.retention import Retention
from runtime.domain.routing import DECODE, PREFILL, Asked, Placement, Router
from runtime.domain.sessions import Prepared
from runtime.domain.sources import Policy
from runtime.domain.spec import ModelSpec
from runtime.engine.simulated import SimulatedEngine, StepProfile, simulated_spec
from runtime.errors import BatonError, Incompatible
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.mesh.simulated.checker import INTRUDER, Checker
from runtime.mesh.simulated.database import SimulatedDatabase, SimulatedStore, StoreServer
from runtime.mesh.simulated.holders import SimulatedHolders
from runtime.mesh.simulated.network import Host, Network, SimulatedKeepers
from runtime.mesh.simulated.onesided import OneSidedTransport
from runtime.mesh.simulated.registry import Controller, SimulatedDirectory
from runtime.mesh.simulated.scenario import Scenario
from runtime.mesh.simulated.tools import CallingTokenizer
from runtime.mesh.simulated.world import Process, World
from runtime.roles.belonging import Belonging, Drained
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.erasing import ErasingRole, ErasingSettings
from runtime.roles.gateway import GatewayRole, GatewaySettings, ServedModel
from runtime.roles.holding import HoldingRole
from runtime.roles.mirroring import MirrorRole, MirrorSettings
from runtime.roles.prefill import PrefillRole
from runtime.roles.retaining import RetentionSettings
from runtime.roles.session_settings import SessionSettings
from runtime.roles.sessions import SessionRole
from runtime.roles.stream import StreamSettings
from runtime.roles.tapping import Tapped
from runtime.router.holders import Held
from runtime.router.mirroring import MirrorPolicy, MirrorRouter

TENANT = TenantId("default")
GRACE_S = 2.0
HOLD_S = 2.0
LEASE_S = 2.0
LONGEST_OPEN_S = 1.0
SESSIONS = SessionSettings(lease_s=1.5, beat_s=0.3, retry_s=0.1, store_grace_s=1.5, poll_s=0.05)
PAGE_TOKENS = 4
SALT = b"simulated tenant secret"
_ERASING = ErasingSettings(look_s=0.5)
_POLICY = Policy(remote_min_tokens=6, detached_tokens=64, transfers=2, fetch_min_tokens=PAGE_TOKENS)
KEEP_S = 3.0
_RETENTION = RetentionSettings(0.4, 0.4, Retention(0, round(KEEP_S * 1000)))
_DECODE = DecodeSettings(_POLICY, progress_s=0.8, grace_s=GRACE_S, heartbeat_s=0.4, fetch_s=0.4, retention=_RETENTION)
_MIRROR = MirrorSettings(bytes_per_s=16_384, backlog_pages=24, patience_s=0.6, rest_s=0.5)
_STREAM = StreamSettings(attach_s=0.8, silence_s=1.2)
_BREAKERS = BreakerPolicy(open_s=0.5, longest_s=LONGEST_OPEN_S, probe_s=1.0)
_PROFILE = StepProfile(base_ms=4.0, token_ms=0.3, sequence_ms=0.2)
_LIVES_AGAIN_S = 0.8
_CLOCKS_APART_S = 600.0


@dataclass(slots=True)
class Gateway:
    process: Process
    role: GatewayRole
    sessions: SessionRole
    erasing: ErasingRole
    looks: bool
    group: asyncio.TaskGroup = field(init=False)

    async def main(self) -> None:
        """Where nothing is ever erased it is not looked for, which costs messages."""
        async with asyncio.TaskGroup() as self.group:
            self.group.create_task(self.role.run())
            self.group.create_task(self.sessions.run())
            if self.looks:
                self.group.create_task(self.erasing.run())


@dataclass(slots=True)
class Node:
    """A worker process with what the checker looks at."""

    host: Host
    boot: BootId
    engine: SimulatedEngine
    transport: OneSidedTransport

    @property
    def role(self) -> DecodeRole | PrefillRole:
        return self.host.role

    @property
    def process(self) -> Process:
        return self.host.process


class Fleet:
    def __init__(self, world: World, scenario: Scenario, checker: Checker) -> None:
        self.world = world
        self.ids = Ids(random.Random(world.rng.getrandbits(64)))
        self.spec = simulated_spec("simulated", PAGE_TOKENS, PAGE_TOKENS * scenario.pages)
        self.network = Network(world)
        self.nodes: dict[str, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self.controller = Controller(world, LEASE_S)
        self.store = StoreServer(world, scenario.store, checker.ledger, scenario.skew_s)
        self._scenario = scenario
        self._checker = checker
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._keep(self._start_store)
        self._keep(self._start_controller)
        for number in range(self._scenario.prefill):
            self._keep(lambda name=f"prefill-{number}": self._start_worker(name, PREFILL))  # type: ignore[misc]
        for number in range(self._scenario.decode):
            self._keep(lambda name=f"decode-{number}": self._start_worker(name, DECODE))  # type: ignore[misc]
        for number in range(self._scenario.gateways):
            self._keep(lambda name=f"gw-{number}": self._start_gateway(name))  # type: ignore[misc]
        if self._scenario.intruder:
            self._keep(self._start_intruder)

    def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        for process in self.processes():
            process.kill()
        self.store.close()

    def processes(self) -> list[Process]:
        """All that live, always in the same order."""
        members = [*(node.process for node in self.nodes.values()), *(each.process for each in self.gateways.values())]
        return [each for each in (*members, self.controller.process, self.store.process) if each.alive]

    def members(self) -> dict[WorkerId, BootId]:
        """The workers that live and stay."""
        nodes = self.nodes.items()
        return {WorkerId(name): node.boot for name, node in nodes if node.process.alive and not node.process.leaving}

    async def some_gateway(self) -> Gateway:
        """One that lives, as soon as there is one."""
        while not (alive := [each for each in self.gateways.values() if each.process.alive]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return self.world.rng.choice(alive)

    def _keep(self, start: Callable[[], Process]) -> None:
        self._keepers.append(self.world.group.create_task(self._kept(start, start())))

    async def _kept(self, start: Callable[[], Process], process: Process) -> None:
        while True:
            await process.ended()
            process.kill()
            await asyncio.sleep(_LIVES_AGAIN_S)
            process = start()

    def _process(self, name: str) -> Process:
        return Process(self.world, name, self.world.rng.uniform(0, _CLOCKS_APART_S))

    def _start_store(self) -> Process:
        self.store.start()
        return self.store.process

    def _start_controller(self) -> Process:
        self.controller.start()
        return self.controller.process

    def _start_worker(self, name: str, kind: str) -> Process:
        process, boot, scenario = self._process(name), self.ids.boot(), self._scenario
        limits = Limits(step_tokens=16, max_running=scenario.max_running)
        engine = SimulatedEngine(self.spec, scenario.pages, limits, _PROFILE, process)
        transport = OneSidedTransport(
            self.world, process, name, self.network.transports, self.spec, scenario.slots, HOLD_S
        )
        host = self._host(kind, process, boot, Tapped(engine), transport)
        self.network.hosts[name] = host
        self.network.transports[name] = transport
        self.nodes[name] = Node(host, boot, engine, transport)
        process.run(self._worker_main(host, kind, boot))
        return process

    def _host(self, kind: str, process: Process, boot: BootId, engine: Tapped, transport: OneSidedTransport) -> Host:
        tenants, here = {TENANT: SALT}, Holder(WorkerId(process.name), boot, process.name, kind)
        holders = SimulatedHolders(self.network, process)
        mirror = MirrorRole(here, self.spec, holders, process, _MIRROR)
        role: DecodeRole | PrefillRole
        if kind == PREFILL:
            role = PrefillRole(engine, transport, tenants)
        else:
            observe, peers = self._checker.observer(process.name), self.network.peers(process)
            role = DecodeRole(
                engine, transport, peers, tenants, boot, self.ids, process, _DECODE, observe, mirror=mirror
            )
        holding = HoldingRole(here, engine, transport, holders, tenants, self.ids, role.forget_session)
        return Host(process, role, holding, mirror)

    async def _worker_main(self, host: Host, kind: str, boot: BootId) -> None:
        """Until it is drained, or could not join."""
        name, spec, role = host.process.name, self.spec, host.role

        def describe() -> Worker:
            return Worker(
                WorkerId(name), boot, kind, name, spec.name, spec.kv_fingerprint, spec.serving_fingerprint,
                spec.max_tokens, spec.page_tokens, "simulated", role.engine.load(),
            )  # fmt: skip

        belonging = Belonging(SimulatedDirectory(self.controller, host.process), describe, role, host.process, LEASE_S)
        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(host.main())
                if await _joined(belonging):
                    await belonging.renew()
                serving.cancel()
        except* Drained:
            self.world.say(name, "has left")
        except* Incompatible as refused:
            self.world.violated(18, f"{name} belonged to the mesh and was turned out: {refused.exceptions[0]}")

    def _start_intruder(self) -> Process:
        process = self._process("intruder")
        process.run(self._intrude(process))
        return process

    async def _intrude(self, process: Process) -> None:
        other = simulated_spec("another", PAGE_TOKENS, self.spec.max_tokens)
        worker = Worker(
            INTRUDER, self.ids.boot(), DECODE, "nowhere", other.name, other.kv_fingerprint,
            other.serving_fingerprint, other.max_tokens, other.page_tokens, "simulated",
        )  # fmt: skip
        await process.sleep(self.world.rng.uniform(0.2, 2.0))
        with suppress(BatonError):
            await SimulatedDirectory(self.controller, process).register(worker)

    def _start_gateway(self, name: str) -> Process:
        process, ident = self._process(name), self.ids.gateway()
        settings = self._settings()
        role = GatewayRole(
            ident, (ServedModel(self.spec, CallingTokenizer(), created=0),), self._router(),
            SimulatedDirectory(self.controller, process), self.network.peers(process), self.ids, process,
            settings, self._checker.gateway(process, settings.retries),
        )  # fmt: skip
        store = SimulatedStore(SimulatedDatabase(self.store, process, GatewayId(ident)))
        sessions = SessionRole(role, store, self.ids, process, SESSIONS, _at_once, self._checker.observer(name))
        keepers = SimulatedKeepers(self.network, process)
        erasing = ErasingRole(store, keepers, role.view, sessions.leave, process, _ERASING)
        looks = any(talk.erases for talk in self._scenario.talks)
        gateway = self.gateways[name] = Gateway(process, role, sessions, erasing, looks)
        process.run(gateway.main())
        return process

    def _router(self) -> MirrorRouter:
        policy = MirrorPolicy(self._scenario.copies, self._scenario.mirrors_on, least_tokens=PAGE_TOKENS)
        return MirrorRouter(Router(Placement.LEAST_LOADED), Knowing(self.nodes, self.spec), policy)

    def _settings(self) -> GatewaySettings:
        retries = RetryPolicy(per_turn=0.2, per_s=0.5, burst=self._scenario.retries)
        return GatewaySettings(_STREAM, placement_s=4.0, overdue_s=2.5, breakers=_BREAKERS, retries=retries)


class Knowing:
    """A directory of which nothing gets lost: what all that live have in their pools."""

    def __init__(self, nodes: Mapping[str, Node], spec: ModelSpec) -> None:
        self._nodes = nodes
        self._spec = spec

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held:
        chain = extend_chain([], SALT, asked.tokens, PAGE_TOKENS, self._spec.kv_fingerprint)
        pages = {node.boot: node.engine.match(chain) for node in self._nodes.values() if node.process.alive}
        tokens = np.array([pages.get(boot, 0) * PAGE_TOKENS for boot in boots], dtype=np.int64)
        return Held(tokens, tokens, tokens)


async def _joined(belonging: Belonging) -> bool:
    try:
        await belonging.join()
    except BatonError:
        return False
    return True


async def _at_once(work: Callable[[], Prepared]) -> Prepared:
    return work()
