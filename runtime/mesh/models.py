"""The model of a configuration: checked early, and as a gateway serves it. Never its weights."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.config import SHIPPED, Config, ModelConfig, WorkerConfig
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.spec import ModelSpec
from runtime.engine.simulated import SimulatedTokenizer, simulated_spec
from runtime.engine.simulated_kv import KvShape
from runtime.errors import ConfigError, ModelError
from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.share import shares_of
from runtime.model.spec import DTYPES, checkpoint_spec
from runtime.roles.gateway import ServedModel
from runtime.simulating import SimulatedConfig

SHIPPED_NAME = "baton-recall"
_SIMULATED_NAME = "simulated"


def model_name(model: ModelConfig) -> str:
    """What requests call it."""
    if model.name is not None:
        return model.name
    if model.simulated is not None:
        return _SIMULATED_NAME
    return SHIPPED_NAME if model.path == SHIPPED else Path(model.path).resolve().name


def model_path(model: ModelConfig) -> Path:
    return SHIPPED_MODEL if model.path == SHIPPED else Path(model.path)


def model_dtype(model: ModelConfig, declared: Mapping[str, Any]) -> str:
    """`declared` is the checkpoint's config.json; what cannot be computed in is computed in float32."""
    if model.dtype != "auto":
        return model.dtype
    dtype = str(declared.get("dtype") or declared.get("torch_dtype"))
    return dtype if dtype in DTYPES else DTYPES[0]


def worker_dtype(config: Config, worker: WorkerConfig, declared: Mapping[str, Any]) -> str:
    """What this worker computes in, and keeps KV in."""
    return worker.kv.dtype or model_dtype(config.model, declared)


def check_model(config: Config) -> None:
    """Raises `ConfigError` when there is no model where the configuration says, and `ModelError` when the ranks of a
    worker cannot share it, as far as a quick look can tell."""
    if config.model.simulated is not None:
        return
    try:
        checkpoint = open_checkpoint(model_path(config.model))
    except ModelError as error:
        raise ConfigError(f"model.path: {error}") from error
    for ranks in sorted({config.ranks(worker) for worker in config.workers} - {1}):
        shares_of(checkpoint, ranks)
    _check_dtypes(config, checkpoint)


def _check_dtypes(config: Config, checkpoint: Checkpoint) -> None:
    """Whether every decode worker takes the pages of every prefill worker."""
    dtypes = {
        role: {
            worker_dtype(config, worker, checkpoint.config): worker.name
            for worker in config.workers
            if worker.role == role
        }
        for role in (PREFILL, DECODE)
    }
    for dtype, name in dtypes[PREFILL].items():
        for kept, other in dtypes[DECODE].items():
            if dtype != kept and dtype not in config.handoff.dtypes:
                raise ConfigError(
                    f"workers.{name}.kv.dtype: they compute in {dtype}, and workers {other} keep {kept}: name {dtype} "
                    "in handoff.dtypes, if answers may differ by that"
                )


def simulated_model(config: Config, simulated: SimulatedConfig) -> ModelSpec:
    """The spec of a simulated model of this configuration."""
    kv = simulated.kv
    shape = KvShape() if kv is None else KvShape(kv.layers, kv.kv_heads, kv.head_dim, kv.dtype)
    return simulated_spec(model_name(config.model), config.engine.page_tokens, simulated.max_tokens, shape)


def served_model(config: Config) -> ServedModel:
    """Spec and tokenizer. Reads the weights once, for the fingerprint; raises `ModelError`."""
    created = int(time.time())
    model, simulated = config.model, config.model.simulated
    if simulated is not None:
        return ServedModel(simulated_model(config, simulated), SimulatedTokenizer(), created)
    from runtime.model.tokenizer import Tokenizer  # a simulated mesh can do without transformers

    path = model_path(model)
    checkpoint = open_checkpoint(path)
    spec = checkpoint_spec(
        checkpoint,
        name=model_name(model),
        dtype=model_dtype(model, checkpoint.config),
        page_tokens=config.engine.page_tokens,
        quantized=model.quantization is not None,
    )
    return ServedModel(spec, Tokenizer(path, model.tool_calls), created)
