"""The controller, wired: the role behind its gRPC server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from runtime.clock import LoopClock
from runtime.config import Config
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
    role = ControllerRole(incarnation, config.timing.lease_s, LoopClock())
    server = GrpcServer(host, port)
    server.add(RegistryService(role))
    server.add(MeshService(role.view))
    async with server, Scope() as group:
        running = group.create_task(role.run())
        yield RunningController(role, f"{host}:{server.port}")
        running.cancel()
