"""The Ray actor that hosts the controller, and keeps the actors of the workers alive."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.worker import worker_actor
from runtime.clock import LoopClock
from runtime.config import Config
from runtime.domain.restarts import RestartPolicy
from runtime.errors import SetupError, StartError
from runtime.ids import TenantId, WorkerId
from runtime.mesh.controller import RunningController, controller_process
from runtime.mesh.keeping import Keeper, Kept
from runtime.mesh.plan import planned_workers
from runtime.mesh.resident import Resident
from runtime.roles.controller import ControllerRole
from runtime.telemetry import log_to_stderr

NAME = "controller"
_LEAVE_S = 10.0
_log = logging.getLogger(__name__)


class _ActorHost:
    """A worker in an actor, as its keeper sees it."""

    def __init__(self, actor: ActorHandle[Any], worker: WorkerId, role: ControllerRole) -> None:
        self._actor = actor
        self._worker = worker
        self._role = role

    async def start(self) -> None:
        try:
            why = await self._actor.start.remote()
        except RayActorError as error:
            raise StartError(f"its process died while it started: {_words(error)}") from error
        if why:
            raise StartError(why)

    async def ended(self) -> str:
        try:
            why = str(await self._actor.ended.remote())
        except RayActorError as error:
            why = _words(error)
        await self._take_out()
        return why

    async def stop(self) -> None:
        try:
            await asyncio.wait_for(self._actor.stop.remote(), _LEAVE_S)
        except (RayError, TimeoutError) as error:
            _log.info("a worker's actor did not leave by itself: %s", type(error).__name__)
        ray.kill(self._actor)

    async def _take_out(self) -> None:
        """Gateways need not wait for the lease of a worker that is known to be dead."""
        for known in self._role.view().workers:
            if known.id == self._worker:
                await self._role.leave(known.id, known.boot)


class _ActorLauncher:
    def __init__(self, config: Config, tenants: dict[TenantId, bytes], running: RunningController, host: str) -> None:
        self._config = config
        self._tenants = tenants
        self._running = running
        self._host = host

    async def launch(self, worker: WorkerId) -> _ActorHost:
        actor = worker_actor(self._config, worker, self._tenants, self._running.address, self._host)
        return _ActorHost(actor, worker, self._running.role)


def _words(error: RayActorError) -> str:
    """What Ray knows of an actor's death, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "reason" in line.lower() or "exit" in line.lower()), lines[0])


class BatonController:
    """`port` 0 takes any free one; a controller that takes over from a dead one takes its port too."""

    def __init__(self, config: str, incarnation: int, tenants: dict[TenantId, bytes], host: str, port: int) -> None:
        log_to_stderr(NAME)
        self._config = Config.model_validate_json(config)
        self._tenants = tenants
        self._resident = Resident(self._serve(incarnation, host, port))

    async def start(self) -> tuple[str, str]:
        """The address it listens on, and empty, or why it could not start."""
        try:
            return await self._resident.start(), ""
        except SetupError as error:
            return "", str(error)

    async def report(self) -> tuple[Kept, ...]:
        return self._keeper.report()

    async def stop(self) -> None:
        """Stop all workers, then the controller."""
        await self._resident.stop()

    @asynccontextmanager
    async def _serve(self, incarnation: int, host: str, port: int) -> AsyncIterator[str]:
        async with controller_process(self._config, incarnation, host, port) as running, asyncio.TaskGroup() as group:
            launcher = _ActorLauncher(self._config, self._tenants, running, host)
            workers = tuple(planned_workers(self._config))
            self._keeper = Keeper(workers, launcher, RestartPolicy(), LoopClock())
            keeping = group.create_task(self._keeper.run())
            yield running.address
            keeping.cancel()
            await self._keeper.stop()


class ControllerHandle:
    """The controller as the supervisor calls it, waiting for every answer."""

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self._actor = actor

    @classmethod
    def launch(
        cls, config: Config, incarnation: int, tenants: dict[TenantId, bytes], host: str, port: int
    ) -> "ControllerHandle":
        """A new controller on this node, whose address the workers and gateways keep."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(BatonController).options(
            name=NAME, lifetime="detached", max_restarts=0, num_cpus=0, scheduling_strategy=here
        )
        arguments = (config.model_dump_json(), incarnation, tenants, host, port)
        return cls(cast("ActorHandle[Any]", actor.remote(*arguments)))

    @classmethod
    def find(cls, namespace: str) -> "ControllerHandle":
        """Raises `ValueError` when there is none."""
        return cls(ray.get_actor(NAME, namespace=namespace))

    def start(self, timeout_s: float) -> str:
        """The address it listens on; raises `StartError` with why there is none."""
        try:
            address, why = self._answer(self._actor.start.remote(), timeout_s)
        except RayError as error:
            raise StartError(f"the controller did not start: {type(error).__name__}") from error
        if why:
            raise StartError(f"the controller did not start: {why}")
        return str(address)

    def report(self) -> tuple[Kept, ...] | None:
        """How the workers are; None when the controller is dead."""
        try:
            return cast("tuple[Kept, ...]", self._answer(self._actor.report.remote(), _LEAVE_S))
        except RayActorError:
            return None

    def stop(self, timeout_s: float) -> None:
        """Have it stop the workers and then itself."""
        try:
            self._answer(self._actor.stop.remote(), timeout_s)
        except RayError as error:
            _log.warning("the controller did not stop by itself: %s", type(error).__name__)

    def _answer(self, reference: ObjectRef[Any], timeout_s: float) -> Any:  # noqa: ANN401 - as the method says
        return ray.get(reference, timeout=timeout_s)
