"""Ray itself: a cluster of our own for as long as a mesh runs, or a connection to one that others run.

Never `ray stop`, which ends every Ray of the machine. Import this only when the environment is set.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from runtime.config import Config
from runtime.errors import StartError
from runtime.mesh.security import check_listening

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Connected:
    """`address` is that of the cluster; `dashboard` is a URL, or empty where there is none."""

    address: str
    dashboard: str


@contextmanager
def own_cluster(config: Config, scratch: Path) -> Iterator[Connected]:
    """A cluster on this machine, for as long as the context is open."""
    settings = config.ray
    # Ray only counts its CPUs. With these all of the mesh may start, and Ray makes as many processes in advance.
    needed = sum(worker.count * worker.threads for worker in config.workers) + config.gateway.replicas
    context = ray.init(
        address="local",
        num_cpus=settings.cpus or needed,
        resources=neuron_resource(sum(worker.count * worker.neuron_cores for worker in config.workers)),
        object_store_memory=settings.object_store_mib * _MIB,
        include_dashboard=True,
        dashboard_host=settings.dashboard_host,
        dashboard_port=settings.dashboard_port or None,
        namespace=config.namespace,
        logging_level=logging.WARNING,
        log_to_driver=True,
        _temp_dir=str(scratch),
    )
    try:
        yield Connected(ray.get_runtime_context().gcs_address, _url(context.dashboard_url))
    finally:
        ray.shutdown()


@contextmanager
def others_cluster(config: Config) -> Iterator[Connected]:
    """A connection to the cluster at `ray.address`.

    Raises `StartError` when there is none, or it does not let us in.
    """
    address = config.ray.address
    try:
        context = ray.init(
            address=address, namespace=config.namespace, logging_level=logging.WARNING, log_to_driver=True
        )
    except AuthenticationError as error:
        raise StartError(f"ray.address: the cluster at {address} wants another token: {error}") from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StartError(f"ray.address: no Ray cluster answers at {address}: {error}") from error
    try:
        yield Connected(ray.get_runtime_context().gcs_address, _url(context.dashboard_url))
    finally:
        ray.shutdown()


def neuron_resource(cores: int) -> dict[str, float]:
    """Neuron cores in Ray's words; it does not know every chip, so a cluster of others must have been told as well."""
    return {"neuron_cores": cores} if cores else {}


def _url(host_port: str | None) -> str:
    return f"http://{host_port}" if host_port else ""


def node_host(config: Config) -> str:
    """Where workers and controller listen: a cluster of our own is this machine alone.

    Raises `StartError` when that would be unencrypted on the network and the configuration does not say so.
    """
    if config.ray.address is None:
        return "127.0.0.1"
    host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    check_listening(config, host)
    return host
