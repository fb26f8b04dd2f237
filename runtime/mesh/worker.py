"""One worker, wired: engine, role, transport and gRPC server, registered with the controller until it leaves."""

import logging
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clients.peers import GrpcPeers
from runtime.clock import LoopClock
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.domain.messages import PageForm, Worker, link_speeds
from runtime.domain.profile import Speedometer
from runtime.domain.routing import DECODE
from runtime.domain.sources import Policy
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding
from runtime.engine.faltering import Faltering
from runtime.engine.measured import Measured
from runtime.errors import BatonError, Incompatible, StartError, Unavailable
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.kv.frames import VERSION
from runtime.kv.transport.faults import VARIABLE, Faults, Faulty, read_faults
from runtime.kv.transport.grpc import GrpcTransport, message_bytes
from runtime.kv.transport.paths import Paths, Shm
from runtime.kv_settings import REMOTE_MIN_TOKENS
from runtime.mesh.engines import running_engine
from runtime.mesh.plan import planned_workers
from runtime.mesh.security import Security
from runtime.mesh.tiers import running_tiers
from runtime.ports import Engine, Tiers
from runtime.roles.belonging import Belonging
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.pages import PagesRole
from runtime.roles.prefill import Exposure, PrefillRole
from runtime.scope import Scope
from runtime.services.decode import DecodeService
from runtime.services.erasing import ErasureService
from runtime.services.pages import PagesService
from runtime.services.prefill import PrefillService
from runtime.services.server import GrpcServer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """`engine` and `transport` are there to be checked once idle."""

    worker: Worker
    role: DecodeRole | PrefillRole
    engine: Engine
    transport: Paths


@asynccontextmanager
async def worker_process(
    config: Config,
    worker: WorkerId,
    boot: BootId,
    controller: str,
    tenants: Mapping[TenantId, bytes],
    host: str,
) -> AsyncIterator[RunningWorker]:
    """A generation of a worker, from its engine's start to its leave; cancelled or broken it is gone without leaving.
    `controller` is the address to register at, `host` where it listens, on any free port.

    Raises `SetupError` when it cannot start, and what broke it in an `ExceptionGroup` when it breaks later, `Drained`
    among that.
    """
    plan, clock, faults = planned_workers(config)[worker], LoopClock(), _faults(worker)
    security = Security(config, Role(plan.role))
    async with AsyncExitStack() as stack:
        speed, held, exposure = Speedometer(), PagesRole(clock), Exposure()
        bare: Engine = await stack.enter_async_context(running_engine(config, plan, clock))
        engine = Measured(bare if faults is None else Faltering(bare, faults), speed, held.changed)
        tiers = await stack.enter_async_context(running_tiers(config, engine, clock))
        channels = await stack.enter_async_context(Channels(security.channels()))
        server = _server(host, engine.spec, security)
        address = f"{host}:{server.port}"
        wire = engine.spec.cut(config.handoff.layer_groups)
        transport = stack.enter_context(_paths(config, wire, address, channels))
        moving = transport if faults is None else Faulty(transport, faults)
        role: DecodeRole | PrefillRole
        if plan.role == DECODE:
            peers, ids = GrpcPeers(channels, GatewayId(worker)), Ids(random.SystemRandom())
            role = DecodeRole(engine, moving, peers, tenants, boot, ids, clock, _decode_settings(config), tiers=tiers)
            server.add(DecodeService(role))
        else:
            role = PrefillRole(engine, moving, tenants, tiers, () if wire is engine.spec else wire.groups, exposure)
            server.add(PrefillService(role))
        for service in (transport.service, ErasureService(role), PagesService(held)):
            server.add(service)
        form = PageForm(wire.dtype, config.handoff.dtypes, wire.groups)
        here = _describe(worker, boot, plan.role, config.described(plan), address, engine.spec, form)
        group = await stack.enter_async_context(Scope())
        stack.callback(group.create_task(role.run()).cancel)
        await stack.enter_async_context(server)
        describe = partial(_now, here, engine, transport, speed, tiers, exposure)
        belonging = Belonging(GrpcDirectory(channels, controller, clock), describe, role, clock, config.timing.lease_s)
        await _join(belonging)
        renewing = group.create_task(belonging.renew())
        stack.callback(renewing.cancel)
        yield RunningWorker(here, role, engine, transport)
        renewing.cancel()
        await belonging.leave()


@contextmanager
def _paths(config: Config, spec: ModelSpec, address: str, channels: Channels) -> Iterator[Paths]:
    grpc = GrpcTransport(spec, address, channels.bulk, Encoding(config.handoff.wire), config.handoff.dtypes)
    if config.handoff.transport != "auto":
        yield Paths(grpc, None, f"handoff.transport is {config.handoff.transport}")
        return
    try:
        shm = Shm(grpc, config.handoff.staging_mib << 20)
    except Unavailable as error:
        _log.warning("no shared memory: %s", error.message)
        yield Paths(grpc, None, error.message)
        return
    try:
        yield Paths(grpc, shm)
    finally:
        shm.close()


def _faults(worker: WorkerId) -> Faults | None:
    """Those that happen on purpose, where the environment asks for them."""
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return None
    _log.warning("faults happen here on purpose: %s", asked)
    return read_faults(asked, worker, random.SystemRandom())


def _server(host: str, spec: ModelSpec, security: Security) -> GrpcServer:
    door, members = security.members_door(), security.members()
    return GrpcServer(host, 0, message_bytes=message_bytes(spec), tls=door, access=members)


def _decode_settings(config: Config) -> DecodeSettings:
    timing, handoff = config.timing, config.handoff
    return DecodeSettings(
        policy=Policy(
            remote_min_tokens=handoff.remote_min_tokens or REMOTE_MIN_TOKENS,
            detached_tokens=timing.detached_tokens,
            transfers=handoff.transfers,
        ),
        progress_s=timing.progress_s,
        grace_s=timing.grace_s,
        heartbeat_s=timing.heartbeat_s,
        encoding=Encoding(handoff.wire),
        dtypes=handoff.dtypes,
    )


def _describe(
    worker: WorkerId, boot: BootId, role: str, device: str, address: str, spec: ModelSpec, pages: PageForm
) -> Worker:
    return Worker(
        id=worker,
        boot=boot,
        role=role,
        address=address,
        model=spec.name,
        kv_fingerprint=spec.kv_fingerprint,
        serving_fingerprint=spec.serving_fingerprint,
        max_tokens=spec.max_tokens,
        page_tokens=spec.page_tokens,
        device=device,
        frame_version=VERSION,
        pages=pages,
    )


def _now(
    here: Worker, engine: Engine, transport: Paths, speed: Speedometer, tiers: Tiers, exposure: Exposure
) -> Worker:
    traffic = replace(transport.traffic(), prefill_ms=exposure.prefill_ms, exposed_ms=exposure.exposed_ms)
    profile = speed.profile(link_speeds(traffic))
    return replace(here, load=engine.load(), traffic=traffic, profile=profile, tiers=tiers.reports())


async def _join(belonging: Belonging) -> None:
    try:
        await belonging.join()
    except Incompatible as error:
        raise StartError(f"the mesh refused it: {error.message}") from error
    except BatonError as error:
        raise StartError(f"it could not register with the controller: {error.message}") from error
