"""How large the pool of each worker is, as its configuration says, or as the memory that it finds allows."""

import logging
from dataclasses import replace

from runtime.config import Config, WorkerConfig
from runtime.domain.pool_size import PoolSize, Room, Sharing, least_pages, mib, sized_by_share
from runtime.engine.memory import room_of
from runtime.errors import ConfigError
from runtime.mesh.models import model_name, model_path, simulated_model, worker_dtype
from runtime.model.checkpoint import open_checkpoint
from runtime.model.share import shares_of
from runtime.model.spec import sized_spec

_MIB = 1 << 20
# Half of a host's memory is left to packed weights, activations, files and everybody else. A worker that starts again
# finds less, and takes less. A GPU is the worker's own: what is left is for its activations.
_SHARE_OF_HOST = 0.5
_SHARE_OF_GPU = 0.8
_log = logging.getLogger(__name__)


def pool_pages(config: Config, worker: WorkerConfig, room: Room) -> int:
    """How many pages a pool in this room has; says how that came to be. Raises `ConfigError` with the arithmetic."""
    size = pool_size(config, worker, room)
    _log.info("KV pool: %s", size.account, extra={"pages": size.pages})
    return size.pages


def pool_size(config: Config, worker: WorkerConfig, room: Room) -> PoolSize:
    """Raises `ConfigError` by the field at fault when sequences that decode together could not have a page each, or,
    where the configuration leaves the size to the worker, when the least that works is more than is free."""
    engine = config.engine
    if not engine.kv_sized:
        return _shared(room, sharing_of(config, worker))
    if engine.pages is None:
        assert engine.kv_mib is not None
        field, pages = "engine.kv_mib", engine.kv_mib * _MIB // room.page_bytes
    else:
        field, pages = "engine.pages", engine.pages
    if pages < engine.max_running:
        raise ConfigError(
            f"{field}: makes {pages} pages of {room.page_bytes} bytes, "
            f"too few for engine.max_running, which is {engine.max_running}"
        )
    return PoolSize(pages, f"{pages} pages, {mib(pages * room.page_bytes)}, as {field} says")


def sharing_of(config: Config, worker: WorkerConfig) -> Sharing:
    """Who else of the configuration may live in the memory of this worker. A host is taken to have all of them, also
    in a cluster of several."""
    alone = worker.gpus > 0
    share = config.engine.kv_memory_share or (_SHARE_OF_GPU if alone else _SHARE_OF_HOST)
    return Sharing(share, 1 if alone else workers_on_host(config), config.engine.max_running)


def workers_on_host(config: Config) -> int:
    """How many workers have their weights and pages in the memory of hosts."""
    return sum(worker.count for worker in config.workers if worker.on_host)


def expected_room(config: Config, worker: WorkerConfig, free: int) -> Room:
    """What a worker is going to find in `free` bytes, told without reading weights. Raises `ModelError`."""
    model, page_tokens = config.model, config.engine.page_tokens
    if model.simulated is not None:
        spec = simulated_model(config, model.simulated)
        return Room(free, 0, spec.page_bytes, page_tokens, spec.max_tokens)
    checkpoint = open_checkpoint(model_path(model))
    dtype, ranks = worker_dtype(config, worker, checkpoint.config), config.ranks(worker)
    spec = sized_spec(checkpoint, name=model_name(model), dtype=dtype, page_tokens=page_tokens)
    if worker.on_neuron is not None:
        past = max(bucket.past_pages for bucket in worker.on_neuron.buckets)
        spec = replace(spec, max_tokens=min(spec.max_tokens, past * page_tokens))
    return room_of(checkpoint, spec, free, shares_of(checkpoint, ranks) if ranks > 1 else ())


def _shared(room: Room, sharing: Sharing) -> PoolSize:
    least = least_pages(room, sharing.max_running)
    needed = room.taken(least)
    if needed > room.free:
        raise ConfigError(
            f"engine.kv_memory_share: weights of {mib(room.weights)} and {least} pages of {room.page_bytes} bytes, the "
            f"least for one context of {room.max_tokens} tokens and for engine.max_running, which is "
            f"{sharing.max_running}, are {mib(needed)} together, and {mib(room.free)} are free; engine.kv_mib can make "
            "the pool smaller, and the context with it"
        )
    return sized_by_share(room, sharing)
