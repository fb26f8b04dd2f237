"""A whole mesh in one process and on one event loop: real gRPC over loopback, no Ray. For tests and benches."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from runtime.config import Config
from runtime.ids import Ids, TenantId, WorkerId
from runtime.mesh.controller import RunningController, controller_process
from runtime.mesh.gateway import RunningGateway, gateway_process
from runtime.mesh.http import http_server
from runtime.mesh.plan import planned_workers
from runtime.mesh.resident import Resident
from runtime.mesh.tenants import open_tenants
from runtime.mesh.worker import RunningWorker, worker_process
from runtime.roles.belonging import was_drained

_HOST = "127.0.0.1"


class LocalMesh:
    """`grpc` is the gateway's host:port, `http` the root URL of its HTTP server. `workers` are those that live."""

    def __init__(self, config: Config, controller: RunningController, tenants: Mapping[TenantId, bytes]) -> None:
        self.config = config
        self.controller = controller
        self.workers: dict[WorkerId, RunningWorker] = {}
        self.gateway: RunningGateway
        self.grpc = ""
        self._gateway: Resident[RunningGateway]
        self.http = ""
        self._tenants = tenants
        self._ids = Ids(random.SystemRandom())
        self._residents: dict[WorkerId, Resident[RunningWorker]] = {}

    async def start(self, worker: WorkerId) -> RunningWorker:
        """Start a new generation of a worker of the configuration, up to its registration."""
        assert worker not in self._residents, f"{worker} runs already"
        process = worker_process(self.config, worker, self._ids.boot(), self.controller.address, self._tenants, _HOST)
        resident = Resident(process)
        running = self.workers[worker] = await resident.start()
        self._residents[worker] = resident
        return running

    async def kill(self, worker: WorkerId) -> None:
        """End a worker as a killed process ends, seen from the others: its connections break and it tells nobody."""
        del self.workers[worker]
        await self._residents.pop(worker).abort()

    async def stop(self, worker: WorkerId) -> None:
        """Let a worker leave; raises what broke it, if anything did. One that was drained has left."""
        del self.workers[worker]
        try:
            await self._residents.pop(worker).stop()
        except ExceptionGroup as ended:
            if not was_drained(ended):
                raise

    async def start_gateway(self, port: int = 0) -> None:
        """Start a gateway where none runs, up to its listening."""
        process = gateway_process(self.config, self.controller.address, port=port, tenants=self._tenants)
        self._gateway = Resident(process)
        self.gateway = await self._gateway.start()
        self.grpc = f"{_HOST}:{self.gateway.port}"

    async def stop_gateway(self) -> None:
        await self._gateway.stop()

    def check(self) -> None:
        """Raise `InvariantViolation` unless the pages of every living worker add up. Only while idle."""
        for running in self.workers.values():
            running.engine.check()

    async def start_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for worker in planned_workers(self.config):
                    group.create_task(self.start(worker))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def stop_all(self) -> None:
        for worker in tuple(self._residents):
            await self.stop(worker)


@asynccontextmanager
async def local_mesh(config: Config, *, grpc_port: int = 0, http_port: int | None = None) -> AsyncIterator[LocalMesh]:
    """The mesh of a configuration, all of its workers registered and its gateway serving.

    The ports are those given here and not the configuration's: 0 takes any free one, and without `http_port` there is
    no HTTP. State is kept where the configuration says. Raises `SetupError` when a part cannot start.
    """
    tenants = open_tenants(config.state, config.access.tenants)
    async with AsyncExitStack() as stack:
        controller = await stack.enter_async_context(controller_process(config, 1, _HOST, 0))
        mesh = LocalMesh(config, controller, tenants)
        stack.push_async_callback(mesh.stop_all)
        await mesh.start_all()
        # Last, so that the first view it sees has all of them.
        await mesh.start_gateway(grpc_port)
        stack.push_async_callback(mesh.stop_gateway)
        await mesh.gateway.role.wait_ready()
        if http_port is not None:
            port = await stack.enter_async_context(http_server(mesh.gateway.app, _HOST, http_port))
            mesh.http = f"http://{_HOST}:{port}"
        yield mesh
