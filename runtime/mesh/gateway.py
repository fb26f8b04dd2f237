"""A gateway, wired: the role behind its gRPC server, and the HTTP application for whoever hosts that."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from starlette.applications import Starlette

from runtime.clients.channels import Channels
from runtime.clients.directory import GrpcDirectory
from runtime.clients.erasing import GrpcPageKeepers
from runtime.clients.peers import GrpcPages, GrpcPeers
from runtime.clock import LoopClock
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.domain.routing import Explaining, Placement, Router
from runtime.domain.spec import ModelSpec
from runtime.errors import StartError
from runtime.ids import Ids, TenantId
from runtime.mesh.models import served_model
from runtime.mesh.security import Security
from runtime.mesh.sessions import session_settings, session_store
from runtime.roles.erasing import ErasingRole, ErasingSettings
from runtime.roles.gateway import GatewayRole, GatewaySettings
from runtime.roles.pages import DirectoryRole
from runtime.roles.sessions import SessionRole
from runtime.roles.stream import StreamSettings
from runtime.router.chains import Chains
from runtime.router.cost import CostRouter, Model
from runtime.router.holders import Holders
from runtime.router.index import PageIndex
from runtime.router.mirroring import MirrorPolicy, MirrorRouter
from runtime.scope import Scope
from runtime.services.explaining import GatewayMeshService
from runtime.services.inference import InferenceService, InferenceSettings
from runtime.services.openai.app import openai_app
from runtime.services.openai.settings import OpenAiSettings
from runtime.services.openai.tokenizing import TokenizingPool
from runtime.services.prompts import Prompts
from runtime.services.server import GrpcServer
from runtime.services.sessions import SessionService, SessionServiceSettings

_MIB = 1 << 20
_NO_SECRETS: Mapping[TenantId, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """`app` is ASGI and wants its lifespan run; `port` is that of the gRPC server."""

    role: GatewayRole
    app: Starlette
    port: int


@asynccontextmanager
async def gateway_process(
    config: Config,
    controller: str,
    *,
    port: int,
    shared: bool = False,
    tenants: Mapping[TenantId, bytes] = _NO_SECRETS,
) -> AsyncIterator[RunningGateway]:
    """Serves until the context is left, and then for up to `gateway.drain_s` those who are being served.

    `tenants` are their secrets; without that of its tenant nothing is known of where a prompt's pages are. `shared`:
    other gateways of this machine listen on the same `port`. Raises `SetupError` when it cannot start.
    """
    gateway, tenant = config.gateway, TenantId(config.access.tenants[0])
    security = Security(config, Role.GATEWAY)
    model = await asyncio.to_thread(served_model, config)
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels(security.channels()))
        clock, ids = LoopClock(), Ids(random.SystemRandom())
        ident, directory = ids.gateway(), GrpcDirectory(channels, controller, clock)
        index = PageIndex()
        router, peers = _router(config, model.spec, index, tenants), GrpcPeers(channels, ident)
        role = GatewayRole(ident, (model,), router, directory, peers, ids, clock, _settings(config))
        http = OpenAiSettings(tenant=tenant, max_body_bytes=gateway.max_body_mib * _MIB, deadline_s=gateway.deadline_s)
        pool = TokenizingPool(http.tokenize_threads, http.tokenize_waiting)
        stack.callback(pool.close)
        store = await stack.enter_async_context(session_store(config))
        server = _server(config, port, shared, security)
        server.add(InferenceService(role, pool, InferenceSettings(tenant, gateway.deadline_s)))
        everybody = tuple(map(TenantId, config.access.tenants))
        server.add(GatewayMeshService(role, directory.drain, Prompts(role, pool), everybody))
        group = await stack.enter_async_context(Scope())
        running = group.create_task(role.run())
        stack.callback(running.cancel)
        if gateway.placement == "cost" or config.kv.mirror.copies:
            following = group.create_task(DirectoryRole(GrpcPages(channels), index, clock).run(role.view))
            stack.callback(following.cancel)
        sessions = None
        if store is not None:
            sessions = SessionRole(role, store, ids, clock, session_settings(config), pool.run)
            keepers = GrpcPageKeepers(channels)
            erasing = ErasingRole(store, keepers, role.view, sessions.leave, clock, ErasingSettings())
            server.add(SessionService(sessions, erasing, SessionServiceSettings(tenant, gateway.deadline_s)))
            telling = group.create_task(erasing.run())
            stack.callback(telling.cancel)
            keeping = group.create_task(sessions.run())
            stack.callback(keeping.cancel)
        await stack.enter_async_context(server)
        yield RunningGateway(role, openai_app(role, http, security.http(), sessions), server.port)


def _router(config: Config, spec: ModelSpec, index: PageIndex, tenants: Mapping[TenantId, bytes]) -> Explaining:
    chains = Chains(tenants, spec.page_tokens, spec.kv_fingerprint)
    placing = _placing(config, spec, Holders(index, chains, spec.page_tokens))
    mirror = config.kv.mirror
    if not mirror.copies:
        return placing
    policy = MirrorPolicy(mirror.copies, mirror.on)
    return MirrorRouter(placing, Holders(index, chains, spec.page_tokens), policy)


def _placing(config: Config, spec: ModelSpec, holders: Holders) -> Explaining:
    placement = Placement(config.gateway.placement)
    if placement is not Placement.COST:
        return Router(placement)
    fixed = config.handoff.remote_min_tokens is not None
    return CostRouter(Model(spec.token_bytes, spec.page_tokens), holders, fixed=fixed)


def _server(config: Config, port: int, shared: bool, security: Security) -> GrpcServer:
    gateway = config.gateway
    try:
        return GrpcServer(
            gateway.host,
            port,
            shared=shared,
            message_bytes=gateway.max_body_mib * _MIB,
            grace_s=gateway.drain_s,
            tls=security.clients_door(),
            access=security.clients(),
        )
    except StartError as error:
        raise StartError(f"gateway.grpc_port: {error}") from error


def _settings(config: Config) -> GatewaySettings:
    timing = config.timing
    return GatewaySettings(
        stream=StreamSettings(attach_s=timing.attach_s, silence_s=timing.silence_s),
        placement_s=timing.placement_s,
        overdue_s=timing.overdue_s,
    )
