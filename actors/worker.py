"""The Ray actor that hosts a worker, of any role and engine. Decides nothing; tokens never pass through its methods."""

import logging
import random
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from actors.cluster import neuron_resource
from runtime.config import Config
from runtime.errors import SetupError
from runtime.ids import Ids, TenantId, WorkerId
from runtime.mesh.garbage import spare_what_stays
from runtime.mesh.plan import planned_workers
from runtime.mesh.resident import Resident
from runtime.mesh.worker import RunningWorker, worker_process
from runtime.roles.belonging import was_drained
from runtime.telemetry import log_to_stderr

_log = logging.getLogger(__name__)


class BatonWorker:
    """`config` is the configuration as JSON, `controller` the address to register at, `host` where to listen."""

    def __init__(
        self, config: str, worker: WorkerId, tenants: dict[TenantId, bytes], controller: str, host: str
    ) -> None:
        log_to_stderr(worker)
        settings = Config.model_validate_json(config)
        boot = Ids(random.SystemRandom()).boot()
        self._resident: Resident[RunningWorker] = Resident(
            worker_process(settings, worker, boot, controller, tenants, host)
        )
        self._started: str | None = None

    async def start(self) -> str:
        """Empty once the worker has registered, else why it could not. Also when it has started before."""
        if self._started is None:
            self._started = await self._try_start()
        return self._started

    async def ended(self) -> str:
        """Wait for the end of a worker that started; returns why it came, or nothing when it was drained."""
        try:
            await self._resident.ended()
        except Exception as error:  # noqa: BLE001 - the root of a process
            if was_drained(error):
                return ""
            _log.exception("the worker failed")
            return _explain(error)
        return "it was stopped"

    async def stop(self) -> None:
        """Let the worker leave the mesh."""
        await self._resident.stop()

    async def _try_start(self) -> str:
        try:
            await self._resident.start()
        except SetupError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the root of a process
            _log.exception("the worker could not start")
            return _explain(error)
        spare_what_stays()
        return ""


def _explain(error: BaseException) -> str:
    """The innermost first error, in words for a terminal."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, SetupError) else f"{type(error).__name__}: {error}"


def worker_actor(
    config: Config, worker: WorkerId, tenants: dict[TenantId, bytes], controller: str, host: str
) -> ActorHandle[Any]:
    """The living actor of this worker, or a new one."""
    plan = planned_workers(config)[worker]
    actor = ray.remote(BatonWorker).options(
        name=worker,
        get_if_exists=True,
        lifetime="detached",
        # Ray's own restart hides a death for over a second; the keeper makes a new one.
        max_restarts=0,
        num_cpus=plan.threads,
        num_gpus=plan.gpus,
        resources=neuron_resource(plan.neuron_cores),
    )
    return cast("ActorHandle[Any]", actor.remote(config.model_dump_json(), worker, tenants, controller, host))
