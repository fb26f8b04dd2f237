"""One worker, wired: engine, role, transport and gRPC server, registered with the controller until it leaves."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clients.peers import GrpcPeers
from runtime.clock import Clock, LoopClock
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.domain.messages import PageForm, Worker
from runtime.domain.routing import DECODE
from runtime.domain.sources import Policy
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding
from runtime.errors import BatonError, Incompatible, StartError, Unavailable
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.kv.frames import VERSION
from runtime.kv.transport.faults import VARIABLE, Faulty, parse_faults
from runtime.kv.transport.grpc import GrpcTransport, message_bytes
from runtime.kv.transport.paths import Paths, Shm
from runtime.mesh.engines import running_engine
from runtime.mesh.plan import planned_workers
from runtime.mesh.security import Security
from runtime.mesh.tiers import running_tiers
from runtime.ports import Directory, Engine, Transport
from runtime.roles.decode import DecodeRole, DecodeSettings
from runtime.roles.prefill import PrefillRole
from runtime.scope import Scope
from runtime.services.decode import DecodeService
from runtime.services.erasing import ErasureService
from runtime.services.prefill import PrefillService
from runtime.services.server import GrpcServer

_LEAVE_S = 2.0
_RENEWALS_PER_LEASE = 4
_LOOK_S = 0.05
_log = logging.getLogger(__name__)


class Drained(Exception):
    """The worker has left, as it was asked to."""


def was_drained(error: BaseException) -> bool:
    """Whether that is all that ended it."""
    if isinstance(error, BaseExceptionGroup):
        return all(was_drained(each) for each in error.exceptions)
    return isinstance(error, Drained)


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
    plan, clock = planned_workers(config)[worker], LoopClock()
    security = Security(config, Role(plan.role))
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(running_engine(config, plan, clock))
        tiers = await stack.enter_async_context(running_tiers(config, engine, clock))
        channels = await stack.enter_async_context(Channels(security.channels()))
        server = _server(host, engine.spec, security)
        address = f"{host}:{server.port}"
        transport = stack.enter_context(_paths(config, engine.spec, address, channels))
        moving = _moving(transport)
        role: DecodeRole | PrefillRole
        if plan.role == DECODE:
            peers, ids = GrpcPeers(channels, GatewayId(worker)), Ids(random.SystemRandom())
            role = DecodeRole(engine, moving, peers, tenants, boot, ids, clock, _decode_settings(config), tiers=tiers)
            server.add(DecodeService(role))
        else:
            role = PrefillRole(engine, moving, tenants, tiers)
            server.add(PrefillService(role))
        server.add(transport.service)
        server.add(ErasureService(role))
        pages = PageForm(engine.spec.dtype, config.handoff.dtypes, engine.spec.groups)
        here = _describe(worker, boot, plan.role, config.described(plan), address, engine.spec, pages)
        group = await stack.enter_async_context(Scope())
        stack.callback(group.create_task(role.run()).cancel)
        await stack.enter_async_context(server)
        directory = GrpcDirectory(channels, controller, clock)
        await _join(directory, replace(here, load=engine.load()))

        def describe() -> Worker:
            return replace(here, load=engine.load(), traffic=transport.traffic(), tiers=tiers.reports())

        renewing = group.create_task(_renew(directory, describe, role, clock, config.timing.lease_s))
        stack.callback(renewing.cancel)
        yield RunningWorker(here, role, engine, transport)
        renewing.cancel()
        await _leave(directory, here)


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


def _moving(transport: Paths) -> Transport:
    """What the role moves pages by: with faults on purpose where the environment asks for them."""
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return transport
    _log.warning("pages suffer faults on purpose: %s", asked)
    return Faulty(transport, parse_faults(asked, random.SystemRandom()))


def _server(host: str, spec: ModelSpec, security: Security) -> GrpcServer:
    door, members = security.members_door(), security.members()
    return GrpcServer(host, 0, message_bytes=message_bytes(spec), tls=door, access=members)


def _decode_settings(config: Config) -> DecodeSettings:
    timing, handoff = config.timing, config.handoff
    return DecodeSettings(
        policy=Policy(
            remote_min_tokens=handoff.remote_min_tokens,
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


async def _join(directory: Directory, here: Worker) -> None:
    try:
        await directory.register(here)
    except Incompatible as error:
        raise StartError(f"the mesh refused it: {error.message}") from error
    except BatonError as error:
        raise StartError(f"it could not register with the controller: {error.message}") from error


async def _renew(
    directory: Directory,
    describe: Callable[[], Worker],
    role: DecodeRole | PrefillRole,
    clock: Clock,
    lease_s: float,
) -> None:
    """Until it is to leave, which raises `Drained`. The controller may be away for any time; that it refuses us now
    ends this worker. Once asked, a worker says by itself that it leaves, also to a controller that does not know."""
    here, pause = describe(), lease_s / _RENEWALS_PER_LEASE
    ends: float | None = None
    while True:
        await clock.sleep(pause)
        try:
            here = replace(describe(), draining=ends is not None)
            asked = await directory.register(here)
        except Unavailable as error:
            asked = None
            _log.info("the controller is away: %s", error.message, extra={"worker": here.id})
        if asked is not None:
            ends = clock.now() + asked
        if ends is not None and await _runs_out(role, clock, min(ends, clock.now() + pause), ends):
            await _leave(directory, here)
            raise Drained


async def _runs_out(role: DecodeRole | PrefillRole, clock: Clock, until: float, ends: float) -> bool:
    """Wait until nothing runs here any more, but not longer than `until`; what runs at the end is given up."""
    while role.running():
        if clock.now() >= until:
            break
        await clock.sleep(_LOOK_S)
    if role.running() and clock.now() >= ends:
        if isinstance(role, DecodeRole):
            role.give_up(Unavailable("the worker leaves the mesh"))
        await clock.sleep(_LOOK_S)  # so that those who are told hear it
        return True
    return not role.running()


async def _leave(directory: Directory, here: Worker) -> None:
    try:
        async with asyncio.timeout(_LEAVE_S):
            await directory.leave(here.id, here.boot)
    except (BatonError, TimeoutError):
        _log.info("left without telling the controller, which does not answer", extra={"worker": here.id})
