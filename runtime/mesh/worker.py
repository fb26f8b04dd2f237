"""One worker, wired: engine, role, transport and gRPC server, registered with the controller until it leaves."""

import logging
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clients.mirroring import GrpcMirrorPeers
from runtime.clients.peers import GrpcPeers
from runtime.clock import LoopClock
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.domain.messages import Holder, PageForm, Worker, link_speeds
from runtime.domain.profile import Speedometer
from runtime.domain.retention import Retention
from runtime.domain.routing import DECODE
from runtime.domain.sources import Policy
from runtime.domain.spec import LayerGroup, ModelSpec
from runtime.domain.steps import Encoding
from runtime.engine.faltering import Faltering
from runtime.engine.measured import Measured
from runtime.errors import BatonError, Incompatible, StartError
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.kv.frames import VERSION
from runtime.kv.transport.faults import VARIABLE, Faults, Faulty, read_faults
from runtime.kv.transport.grpc import message_bytes
from runtime.kv.transport.paths import Paths
from runtime.kv_settings import REMOTE_MIN_TOKENS
from runtime.mesh.engines import running_engine
from runtime.mesh.paths import running_paths
from runtime.mesh.plan import planned_workers
from runtime.mesh.security import Security
from runtime.mesh.tiers import running_tiers
from runtime.mirroring import MirrorConfig
from runtime.ports import Engine, Tiers, Transport
from runtime.retaining import RetentionConfig
from runtime.roles.belonging import Belonging
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.holding import HoldingRole
from runtime.roles.mirroring import MirrorRole, MirrorSettings
from runtime.roles.pages import PagesRole
from runtime.roles.prefill import Exposure, PrefillRole
from runtime.roles.retaining import RetentionSettings
from runtime.roles.tapping import Tapped
from runtime.scope import Scope
from runtime.services.decode import DecodeService
from runtime.services.erasing import ErasureService
from runtime.services.mirroring import MirrorService
from runtime.services.pages import PagesService
from runtime.services.prefill import PrefillService
from runtime.services.server import GrpcServer, Service

_MIB = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """`engine`, `tiers` and `transport` are there to be checked once idle."""

    worker: Worker
    role: DecodeRole | PrefillRole
    engine: Engine
    tiers: Tiers
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
        tapped = Tapped(engine)
        tiers = await stack.enter_async_context(running_tiers(config, engine, clock, held.changed))
        channels = await stack.enter_async_context(Channels(security.channels()))
        server = _server(host, engine.spec, security)
        address = f"{host}:{server.port}"
        directory = GrpcDirectory(channels, controller, clock)
        wire = engine.spec.cut(config.handoff.layer_groups)
        paths = running_paths(config, plan.role, wire, f"{worker}:{boot}", address, channels, directory)
        transport = await stack.enter_async_context(paths)
        moving = transport if faults is None else Faulty(transport, faults)
        there = Holder(worker, boot, address, plan.role)
        cut = () if wire is engine.spec else wire.groups
        role, face, holding, mirror = _roles(config, there, tapped, moving, channels, tenants, tiers, cut, exposure)
        server.add(face, *transport.services, MirrorService(holding), ErasureService(holding), PagesService(held))
        form = PageForm(wire.dtype, config.handoff.dtypes, wire.groups)
        here = _describe(worker, boot, plan.role, config.described(plan), address, engine.spec, form)
        group = await stack.enter_async_context(Scope())
        for serving in (role.run(), holding.run(), mirror.run()):
            stack.callback(group.create_task(serving).cancel)
        await stack.enter_async_context(server)
        mirrors = mirror if config.kv.mirror.copies else None
        describe = partial(_now, here, engine, transport, speed, tiers, exposure, mirrors)
        belonging = Belonging(directory, describe, role, clock, config.timing.lease_s)
        await _join(belonging)
        renewing = group.create_task(belonging.renew())
        stack.callback(renewing.cancel)
        yield RunningWorker(here, role, engine, tiers, transport)
        renewing.cancel()
        await belonging.leave()


def _roles(
    config: Config,
    here: Holder,
    engine: Tapped,
    transport: Transport,
    channels: Channels,
    tenants: Mapping[TenantId, bytes],
    tiers: Tiers,
    cut: tuple[LayerGroup, ...],
    exposure: Exposure,
) -> tuple[DecodeRole | PrefillRole, Service, HoldingRole, MirrorRole]:
    """What it does itself with the face of that, and what it does for others."""
    ids, clock, holders = Ids(random.SystemRandom()), LoopClock(), GrpcMirrorPeers(channels)
    mirror = MirrorRole(here, engine.spec, holders, clock, _mirror_settings(config.kv.mirror))
    role: DecodeRole | PrefillRole
    face: Service
    if here.role == DECODE:
        peers, settings = GrpcPeers(channels, GatewayId(here.worker)), _decode_settings(config)
        role = decode = DecodeRole(
            engine, transport, peers, tenants, here.boot, ids, clock, settings, tiers=tiers, mirror=mirror
        )
        face = DecodeService(decode)
    else:
        role = prefill = PrefillRole(engine, transport, tenants, tiers, cut, exposure)
        face = PrefillService(prefill)
    return role, face, HoldingRole(here, engine, transport, holders, tenants, ids, role.forget_session), mirror


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
        retention=_retention_settings(config.kv.retention),
    )


def _mirror_settings(config: MirrorConfig) -> MirrorSettings:
    return MirrorSettings(config.write_mib_s * _MIB, config.backlog_pages, config.patience_s)


def _retention_settings(config: RetentionConfig) -> RetentionSettings:
    most = Retention(round(config.tools_s * 1000), round(config.answer_s * 1000))
    return RetentionSettings(config.worker_share, config.tenant_share, most)


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
    here: Worker,
    engine: Engine,
    transport: Paths,
    speed: Speedometer,
    tiers: Tiers,
    exposure: Exposure,
    mirror: MirrorRole | None,
) -> Worker:
    traffic = replace(transport.traffic(), prefill_ms=exposure.prefill_ms, exposed_ms=exposure.exposed_ms)
    profile, told = speed.profile(link_speeds(traffic)), None if mirror is None else mirror.report()
    return replace(here, load=engine.load(), traffic=traffic, profile=profile, tiers=tiers.reports(), mirror=told)


async def _join(belonging: Belonging) -> None:
    try:
        await belonging.join()
    except Incompatible as error:
        raise StartError(f"the mesh refused it: {error.message}") from error
    except BatonError as error:
        raise StartError(f"it could not register with the controller: {error.message}") from error
