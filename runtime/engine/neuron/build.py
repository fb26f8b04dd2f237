"""An engine core over a checkpoint on a Neuron device, or its stand-in. Joins loading, device and runner."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from runtime.domain.batching import Limits
from runtime.engine.core import EngineCore
from runtime.engine.kv_tensors import DTYPES
from runtime.engine.native import NativeCompute, NativeSettings, engine_core, spec_of
from runtime.engine.neuron.attention import STATIC_ATTENTION
from runtime.engine.neuron.buckets import Bucket, Buckets
from runtime.engine.neuron.device import Device, LiteNeuron, TorchNeuron
from runtime.engine.neuron.forward import Forward
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.preflight import meaning
from runtime.engine.neuron.probe import probe
from runtime.engine.neuron.runner import NeuronRunner, Warmed
from runtime.errors import StartError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


def log_progress(warmed: Warmed) -> None:
    _log.info("bucket %d of %d: %s, %.1f s", warmed.number, warmed.total, warmed.bucket, warmed.seconds)


@dataclass(frozen=True, slots=True)
class NeuronSettings:
    """`progress` hears of every bucket that is ready."""

    buckets: tuple[Bucket, ...]
    device: Device
    progress: Callable[[Warmed], None] = log_progress


def open_neuron(api: str, logical_nc: int | None) -> Device:
    """`api` is `torch` or `lite`. Only after `check_neuron`; raises `StartError` when the device does not open."""
    try:
        if api == "lite":
            return LiteNeuron(("--lnc", str(logical_nc)) if logical_nc is not None else ())
        return TorchNeuron()
    except (ImportError, AttributeError, RuntimeError) as error:
        told = meaning(error) or f"{type(error).__name__}: {error}"
        raise StartError(f"device neuron: it does not open: {told}") from error


def build_neuron(
    native: NativeSettings, neuron: NeuronSettings, limits: Limits, pages: Callable[[int], int]
) -> EngineCore:
    """An engine core with every bucket warmed, and a pool of as many pages as `pages` makes of the bytes that one
    takes; runs on the engine's own thread.

    A context is no longer than the buckets hold. Raises `SetupError` for what cannot run.
    """
    torch.set_num_threads(native.threads)
    checkpoint = open_checkpoint(native.path)
    buckets = Buckets(neuron.buckets, native.page_tokens)
    spec = spec_of(checkpoint, native)
    spec = replace(spec, max_tokens=min(spec.max_tokens, buckets.max_tokens))
    count = pages(spec.page_bytes)
    tokenizer = Tokenizer(native.path)
    model = load_model(checkpoint, DTYPES[native.dtype], STATIC_ATTENTION)
    probe(model, spec)
    model.to(neuron.device.name)  # type: ignore[arg-type] # transformers annotates its decorator, not the method
    kv = NeuronKV(spec, count, neuron.device)
    runner = NeuronRunner(Forward(model, kv.tensors), kv, buckets, neuron.device)
    runner.warm(neuron.progress)
    return engine_core(spec, count, limits, NativeCompute(runner), tokenizer, scores=False)
