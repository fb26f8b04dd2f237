"""The Ray Serve deployment that hosts a gateway: its HTTP behind Serve's ingress, its gRPC on a port of its own."""

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve

from runtime.config import Config
from runtime.ids import TenantId
from runtime.mesh.garbage import spare_what_stays
from runtime.mesh.gateway import RunningGateway, gateway_process
from runtime.mesh.resident import Resident
from runtime.telemetry import log_to_stderr

NAME = "gateway"
# What a replica may need beyond its streams' time, before Serve ends it by force.
_CLOSING_S = 5.0
_MAX_REQUESTS = 4096
_log = logging.getLogger(__name__)


@serve.ingress()
class GatewayReplica:
    """Replicas of one node share the gRPC port. What `__init__` raises fails the deployment, by its message."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: str, controller: str, tenants: Mapping[TenantId, bytes]
    ) -> None:
        log_to_stderr(NAME)
        settings = Config.model_validate_json(config)
        self._resident: Resident[RunningGateway] = Resident(
            gateway_process(settings, controller, port=settings.gateway.grpc_port, shared=True, tenants=tenants)
        )
        self._running = await self._resident.start()
        spare_what_stays()

    def __serve_build_asgi_app__(self) -> Any:  # noqa: ANN401 - as Serve wants it
        return self._running.app

    async def check_health(self) -> None:
        """Raises what broke the gateway, upon which Serve replaces the replica."""
        self._resident.check()

    async def __del__(self) -> None:
        """The last thing that Serve does with a replica; only this waits for the gRPC streams, which it cannot see."""
        await self._resident.stop()


def gateway_application(config: Config, controller: str, tenants: Mapping[TenantId, bytes]) -> serve.Application:
    """`tenants` are their secrets, which travel through Ray as those of the workers do."""
    gateway = config.gateway
    deployment = serve.deployment(
        name=NAME,
        num_replicas=gateway.replicas,
        max_ongoing_requests=_MAX_REQUESTS,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=gateway.drain_s + _CLOSING_S,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 1},
    )(GatewayReplica)
    return deployment.bind(config.model_dump_json(), controller, dict(tenants))
