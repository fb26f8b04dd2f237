"""The controller, wired: the role behind its gRPC server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from runtime.clock import LoopClock
from runtime.config import Config
from runtime.domain.identity import Role
from runtime.mesh.security import Security
from runtime.roles.controller import ControllerRole
from runtime.scope import Scope
from runtime.services.mesh import MeshService, RegistryService
from runtime.services.server import GrpcServer


@dataclass(frozen=True, slots=True)
class RunningController:
    role: ControllerRole
    address: str


@asynccontextmanager
async def controller_process(
    config: Config, incarnation: int, host: str, port: int
) -> AsyncIterator[RunningController]:
    """`incarnation` is greater than that of every earlier controller of this mesh; `port` 0 takes any free one."""
    lease_s = config.timing.lease_s
    # In a lease every worker that lives registers with it.
    role = ControllerRole(incarnation, lease_s, LoopClock(), settle_s=lease_s)
    security = Security(config, Role.CONTROLLER)
    server = GrpcServer(host, port, tls=security.members_door(), access=security.members())
    server.add(RegistryService(role))
    server.add(MeshService(role.view, role.drain))
    async with server, Scope() as group:
        running = group.create_task(role.run())
        yield RunningController(role, f"{host}:{server.port}")
        running.cancel()
