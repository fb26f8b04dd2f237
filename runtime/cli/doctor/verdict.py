"""What of a configuration would run on this machine, pool by pool, and what keeps the rest from it."""

from runtime.cli.doctor.libraries import NIXL_REMEDIES, nixl_memory
from runtime.cli.doctor.node import Finding, Level, Node
from runtime.config import Config, WorkerConfig
from runtime.domain.pool_size import mib
from runtime.engine.cuda.preflight import check_gpu, gpus
from runtime.engine.neuron.preflight import check_neuron
from runtime.errors import ConfigError, ModelError, SetupError
from runtime.mesh.models import check_model, model_name
from runtime.mesh.pool import expected_room, pool_size, workers_on_host

AREA = "configuration"
_MIB = 1 << 20


def check_configuration(config: Config, node: Node) -> list[Finding]:
    pools = (_pool(config, worker, node) for worker in config.workers)
    return [_model(config), _kv_memory(config, node), *_transport(config, node), *pools]


def runs_here(config: Config, findings: list[Finding]) -> bool:
    """Whether all of the configuration runs here; of a cluster of others, at least one pool."""
    faults = {finding.name for finding in findings if finding.area == AREA and finding.level is Level.FAULT}
    pools = {_name(worker) for worker in config.workers}
    if config.ray.address is not None:
        return not (faults - pools) and bool(pools - faults)
    return not faults


def _name(worker: WorkerConfig) -> str:
    return f"{worker.role} pool {worker.name}"


def _model(config: Config) -> Finding:
    try:
        check_model(config)
    except ConfigError as error:
        return Finding(AREA, "model", Level.FAULT, str(error), "model.path names a Hugging Face directory")
    except ModelError as error:
        return Finding(AREA, "model", Level.FAULT, str(error), "")
    return Finding(AREA, "model", Level.GOOD, model_name(config.model))


def _kv_memory(config: Config, node: Node) -> Finding:
    """What the host's memory must hold; a worker's pages on a device of its own are not there."""
    if config.engine.pages is not None:
        return Finding(AREA, "KV memory", Level.GOOD, "as many pages as engine.pages says")
    if config.engine.kv_mib is None:
        return _shared_memory(config, node.memory_bytes("MemAvailable"))
    workers = workers_on_host(config)
    needed, free = workers * config.engine.kv_mib, node.memory_bytes("MemAvailable") // _MIB
    found = f"{needed} MiB for {workers} workers, {free} MiB are available"
    if needed > free:
        return Finding(AREA, "KV memory", Level.FAULT, found, "make engine.kv_mib smaller, or the workers fewer")
    return Finding(AREA, "KV memory", Level.GOOD, found)


def _transport(config: Config, node: Node) -> list[Finding]:
    """Only a path that is asked for by name has to be there."""
    if config.handoff.transport != "nixl":
        return []
    backend = config.handoff.nixl_backend
    memory = nixl_memory(node, backend)
    if memory is None:
        found = f"nixl, but its {backend} does not start"
        return [Finding(AREA, "transport", Level.FAULT, found, NIXL_REMEDIES[backend])]
    return [Finding(AREA, "transport", Level.GOOD, f"nixl by {backend}")]


def _shared_memory(config: Config, free: int) -> Finding:
    """What workers would take of it if they started now, their weights included."""
    told, taken = [], 0
    for worker in config.workers:
        if not worker.on_host:
            told.append(f"{worker.name}: a share of what its device has")
            continue
        try:
            room = expected_room(config, worker, free)
            size = pool_size(config, worker, room)
        except (ConfigError, ModelError) as error:
            return Finding(AREA, "KV memory", Level.FAULT, str(error), "make the workers fewer, or the model smaller")
        told.append(f"{worker.count} x {worker.name}: {size.account}")
        taken += worker.count * room.taken(size.pages)
    found = "; ".join([*told, f"with weights {mib(taken)} in all, {mib(free)} are available"])
    if taken > free:
        return Finding(AREA, "KV memory", Level.FAULT, found, "make the workers fewer, or the model smaller")
    return Finding(AREA, "KV memory", Level.GOOD, found)


def _pool(config: Config, worker: WorkerConfig, node: Node) -> Finding:
    what = f"{worker.count} x {config.described(worker)}"
    if config.model.simulated is None and node.around.version("torch") is None:
        return Finding(AREA, _name(worker), Level.FAULT, "torch is not installed", "pip install torch")
    if worker.gpus:
        return _gpu_pool(worker, what, node)
    neuron = worker.on_neuron
    if neuron is not None and not neuron.stand_in:
        try:
            check_neuron(neuron.api, neuron.logical_nc, node.around)
        except SetupError as error:
            found, _, remedy = str(error).removeprefix("device neuron: ").partition(": ")
            return Finding(AREA, _name(worker), Level.FAULT, f"{what}: {found}", remedy)
    elif worker.threads > node.processors():
        return Finding(
            AREA,
            _name(worker),
            Level.LOW,
            f"{what}, more threads than the {node.processors()} processors",
            "it runs, and slowly: make threads smaller",
        )
    return Finding(AREA, _name(worker), Level.GOOD, what)


def _gpu_pool(worker: WorkerConfig, what: str, node: Node) -> Finding:
    try:
        check_gpu(node.around)
    except SetupError as error:
        found, _, remedy = str(error).removeprefix("device cuda: ").partition(": ")
        return Finding(AREA, _name(worker), Level.FAULT, f"{what}: {found}", remedy)
    if worker.count > len(gpus(node.around)):
        return Finding(
            AREA, _name(worker), Level.FAULT, f"{what}, and {len(gpus(node.around))} GPUs", "make count smaller"
        )
    return Finding(AREA, _name(worker), Level.GOOD, what)
