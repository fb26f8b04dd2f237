"""The engine of a worker, as its configuration says: running for as long as a context is open."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from runtime.clock import Clock
from runtime.config import Config, EngineConfig, WorkerConfig
from runtime.domain.batching import Limits
from runtime.domain.spec import ModelSpec
from runtime.engine.core import EngineCore
from runtime.engine.simulated import SimulatedEngine, StepProfile, simulated_spec
from runtime.engine.threaded import ThreadedEngine
from runtime.errors import ConfigError
from runtime.mesh.models import model_dtype, model_name, model_path
from runtime.model.checkpoint import open_checkpoint
from runtime.ports import Engine

_MIB = 1 << 20


@asynccontextmanager
async def running_engine(config: Config, worker: WorkerConfig, clock: Clock) -> AsyncIterator[Engine]:
    """Raises `ConfigError` or `ModelError` when it cannot run; a thread of its own where it computes."""
    if config.model.simulated is not None:
        yield _simulated(config, clock)
        return
    engine = ThreadedEngine(_native(config, worker))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def _limits(engine: EngineConfig) -> Limits:
    return Limits(step_tokens=engine.step_tokens, max_running=engine.max_running)


def _pages(engine: EngineConfig, spec: ModelSpec) -> int:
    """Raises `ConfigError` when sequences that decode together could not have a page each."""
    if engine.pages is None:
        field, pages = "engine.kv_mib", engine.kv_mib * _MIB // spec.page_bytes
    else:
        field, pages = "engine.pages", engine.pages
    if pages < engine.max_running:
        raise ConfigError(
            f"{field}: makes {pages} pages of {spec.page_bytes} bytes, "
            f"too few for engine.max_running, which is {engine.max_running}"
        )
    return pages


def _simulated(config: Config, clock: Clock) -> SimulatedEngine:
    simulated, engine = config.model.simulated, config.engine
    assert simulated is not None
    spec = simulated_spec(model_name(config.model), engine.page_tokens, simulated.max_tokens)
    profile = StepProfile(simulated.base_ms, simulated.token_ms, simulated.sequence_ms)
    return SimulatedEngine(spec, _pages(engine, spec), _limits(engine), profile, clock)


def _native(config: Config, worker: WorkerConfig) -> Callable[[], EngineCore]:
    def build() -> EngineCore:
        from runtime.engine.native import NativeSettings, build_native  # imports torch, on the engine's thread

        path = model_path(config.model)
        checkpoint = open_checkpoint(path)
        settings = NativeSettings(
            name=model_name(config.model),
            path=path,
            dtype=model_dtype(config.model, checkpoint.config),
            page_tokens=config.engine.page_tokens,
            threads=worker.threads,
        )
        return build_native(settings, _limits(config.engine), partial(_pages, config.engine))

    return build
