"""The engine of a worker, as its configuration says: running for as long as a context is open."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from runtime.clock import Clock
from runtime.config import Config, EngineConfig, WorkerConfig
from runtime.domain.batching import Limits
from runtime.engine.core import EngineCore
from runtime.engine.cuda.preflight import check_gpu
from runtime.engine.memory import free_bytes
from runtime.engine.neuron.buckets import Bucket
from runtime.engine.neuron.preflight import Surroundings, check_neuron, settings_for_process
from runtime.engine.simulated import SimulatedEngine, StepProfile
from runtime.engine.threaded import ThreadedEngine
from runtime.errors import ConfigError
from runtime.mesh.models import model_name, model_path, simulated_model, worker_dtype
from runtime.mesh.pool import expected_room, pool_pages
from runtime.model.checkpoint import open_checkpoint
from runtime.ports import Engine

if TYPE_CHECKING:
    from runtime.engine.native import NativeSettings


@asynccontextmanager
async def running_engine(config: Config, worker: WorkerConfig, clock: Clock) -> AsyncIterator[Engine]:
    """Raises `ConfigError` or `ModelError` when it cannot run; a thread of its own where it computes."""
    if config.model.simulated is not None:
        yield _simulated(config, worker, clock)
        return
    builds = {"cpu": _native, "neuron": _on_neuron, "cuda": _on_gpu}
    engine = ThreadedEngine(builds[worker.device](config, worker))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


def check_devices(config: Config) -> None:
    """Raises `StartError` when this machine lacks a device that a worker of the configuration computes on."""
    for worker in config.workers:
        if worker.neuron_cores and worker.on_neuron:
            check_neuron(worker.on_neuron.api, worker.on_neuron.logical_nc, Surroundings())
        if worker.gpus:
            check_gpu(Surroundings())


def _limits(engine: EngineConfig) -> Limits:
    itl_s = None if engine.itl_ms is None else engine.itl_ms / 1000
    return Limits(step_tokens=engine.step_tokens, max_running=engine.max_running, itl_s=itl_s)


def _simulated(config: Config, worker: WorkerConfig, clock: Clock) -> SimulatedEngine:
    simulated, engine = config.model.simulated, config.engine
    assert simulated is not None
    if config.handoff.wire != "plain":
        raise ConfigError(f"handoff.wire is {config.handoff.wire}, but a simulated model has no numbers to round")
    spec = simulated_model(config, simulated)
    profile = StepProfile(simulated.base_ms, simulated.token_ms, simulated.sequence_ms)
    pages = pool_pages(config, worker, expected_room(config, worker, free_bytes()))
    return SimulatedEngine(spec, pages, _limits(engine), profile, clock)


def _native(config: Config, worker: WorkerConfig) -> Callable[[], EngineCore]:
    def build() -> EngineCore:
        from runtime.engine.native import build_native  # imports torch, on the engine's thread

        pages = partial(pool_pages, config, worker)
        return build_native(_native_settings(config, worker), _limits(config.engine), pages, free_bytes)

    return build


def _on_gpu(config: Config, worker: WorkerConfig) -> Callable[[], EngineCore]:
    def build() -> EngineCore:
        from runtime.engine.cuda.build import build_on_device, free_on_gpu, open_gpu

        device = open_gpu()
        settings, pages = _native_settings(config, worker), partial(pool_pages, config, worker)
        return build_on_device(settings, _limits(config.engine), pages, device, free_on_gpu(device))

    return build


def _on_neuron(config: Config, worker: WorkerConfig) -> Callable[[], EngineCore]:
    def build() -> EngineCore:
        neuron = worker.on_neuron
        assert neuron is not None
        if not neuron.stand_in:
            check_neuron(neuron.api, neuron.logical_nc, Surroundings())
            os.environ.update(settings_for_process(neuron.logical_nc, neuron.cache))
        # Importing torch loads the vendor's packages, which read the environment.
        from runtime.engine.neuron.build import NeuronSettings, build_neuron, open_neuron
        from runtime.engine.neuron.stand_in import StandIn

        device = StandIn() if neuron.stand_in else open_neuron(neuron.api, neuron.logical_nc)
        buckets = tuple(Bucket(bucket.tokens, bucket.past_pages) for bucket in neuron.buckets)
        return build_neuron(
            _native_settings(config, worker),
            NeuronSettings(buckets, device),
            _limits(config.engine),
            partial(pool_pages, config, worker),
            free_bytes(),
        )

    return build


def _native_settings(config: Config, worker: WorkerConfig) -> "NativeSettings":
    from runtime.engine.laid_kv import PoolForm
    from runtime.engine.native import NativeSettings

    path = model_path(config.model)
    return NativeSettings(
        name=model_name(config.model),
        path=path,
        dtype=worker_dtype(config, worker, open_checkpoint(path).config),
        page_tokens=config.engine.page_tokens,
        threads=worker.threads,
        quantized=config.model.quantization is not None,
        ranks=config.ranks(worker),
        form=PoolForm(worker.kv.layout, worker.kv.block_tokens),
    )
