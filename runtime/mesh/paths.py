"""The paths of one worker, as its configuration and its host allow, and its connections to those it will send to."""

import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from runtime.clients.channels import Channels
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding
from runtime.errors import StartError, Unavailable
from runtime.kv.transport.grpc import GrpcTransport
from runtime.kv.transport.nixl.ends import Nixl, NixlPlan, running_nixl
from runtime.kv.transport.paths import Paths, Shm
from runtime.ports import Directory
from runtime.scope import Scope

AUTO, NIXL, GRPC = "auto", "nixl", "grpc"
# Of the connections to a decode worker: two carry pages by gRPC, this one what is said of pages that go by NIXL.
_LANE = 2
_log = logging.getLogger(__name__)


@asynccontextmanager
async def running_paths(
    config: Config, role: str, spec: ModelSpec, agent: str, address: str, channels: Channels, directory: Directory
) -> AsyncIterator[Paths]:
    """`agent` is `worker:generation`, `address` the host:port that others reach this worker at. One that prefills
    connects by NIXL to the decode workers that `directory` tells of.

    Raises `StartError` when a path that was asked for by name is not to be had here.
    """
    handoff = config.handoff
    grpc = GrpcTransport(spec, address, channels.bulk, Encoding(handoff.wire), handoff.dtypes)
    if handoff.transport == GRPC:
        yield Paths(grpc, None, "handoff.transport is grpc")
        return
    async with AsyncExitStack() as stack:
        lacking: list[str] = []
        shm = None
        if handoff.transport == NIXL:
            lacking.append("handoff.transport is nixl")
        else:
            shm = _shm(grpc, handoff.staging_mib << 20, lacking, stack)
        nixl = None
        if handoff.transport == NIXL or not _is_loopback(address):
            plan = NixlPlan(agent, handoff.nixl_backend, handoff.staging_mib << 20)
            nixl = await _nixl(grpc, address, channels, plan, lacking, stack)
        if nixl is None and handoff.transport == NIXL:
            raise StartError(f"handoff.transport is nixl, but {lacking[-1]}")
        if nixl is not None and role == PREFILL:
            group = await stack.enter_async_context(Scope())
            stack.callback(group.create_task(_meet_receivers(directory, nixl)).cancel)
        yield Paths(grpc, shm, "; ".join(lacking), nixl)


async def _meet_receivers(directory: Directory, nixl: Nixl) -> None:
    """Connect to the decode workers as they come, so that no transfer waits for that, and part from those that were
    started anew. Never ends."""
    met: dict[str, str] = {}
    async for view in directory.views():
        for worker in view.workers:
            agent = f"{worker.id}:{worker.boot}"
            if worker.role != DECODE:
                continue
            if met.get(worker.id, agent) != agent:
                nixl.writers.part(met[worker.id])
            met[worker.id] = agent
            nixl.writers.meet(agent, worker.address)


def _shm(grpc: GrpcTransport, staging_bytes: int, lacking: list[str], stack: AsyncExitStack) -> Shm | None:
    try:
        shm = Shm(grpc, staging_bytes)
    except Unavailable as error:
        _log.warning("no shared memory: %s", error.message)
        lacking.append(error.message)
        return None
    stack.callback(shm.close)
    return shm


async def _nixl(
    grpc: GrpcTransport, address: str, channels: Channels, plan: NixlPlan, lacking: list[str], stack: AsyncExitStack
) -> Nixl | None:
    running = running_nixl(
        grpc.codec,
        grpc.transfers,
        address,
        lambda receiver: channels.bulk(receiver, Role.DECODE, _LANE),
        lambda sender: channels.to(sender, Role.PREFILL),
        plan,
    )
    try:
        return await stack.enter_async_context(running)
    except Unavailable as error:
        _log.info("no NIXL: %s", error.message)
        lacking.append(error.message)
        return None


def _is_loopback(address: str) -> bool:
    """Then all that can reach this worker are on its host, where memory is shared and NIXL would only cost."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
