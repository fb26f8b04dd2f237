"""Weights from a checkpoint into a transformers model that computes attention through Baton. No remote code, no hub."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from runtime.errors import ModelError
from runtime.model.checkpoint import ARCHITECTURES, CONFIG_FILE, Checkpoint

_CLASSES: dict[str, type[PreTrainedModel]] = {
    kind.__name__: kind for kind in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
}
assert set(_CLASSES) == set(ARCHITECTURES)
_NAMED = 5
# transformers patches torch for the whole process while it loads: two at a time lose tied tensors.
_LOADING = threading.Lock()


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The configuration with the defaults of its architecture filled in."""
    kind = _CLASSES[checkpoint.architecture].config_class
    assert kind is not None
    with _blaming(checkpoint.path / CONFIG_FILE):
        config = kind.from_pretrained(checkpoint.path, local_files_only=True)
    assert isinstance(config, PreTrainedConfig)
    return config


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model in evaluation mode on the CPU; `attention` names a registered attention implementation.

    Raises `ModelError` naming the tensors that are missing, unexpected or of another shape.
    """
    with _LOADING, _quiet(), _blaming(checkpoint.path):
        loaded: Any = _CLASSES[checkpoint.architecture].from_pretrained(
            checkpoint.path,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, report = loaded
    _check_complete(checkpoint, report)
    model.requires_grad_(False)
    model.eval()
    return model


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """What transformers makes of values that no model can be built from."""
    try:
        yield
    except (ValueError, TypeError, LookupError, StrictDataclassError) as error:
        raise ModelError(f"{path}: no model can be built from it: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report about tensors: what it would say is raised by `_check_complete`."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_complete(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    for kind, keys in (("missing", report["missing_keys"]), ("unexpected", report["unexpected_keys"])):
        if keys:
            raise ModelError(f"{checkpoint.path}: {len(keys)} tensors are {kind}: {_some(keys)}")
    for name, stored, wanted in report["mismatched_keys"]:
        raise ModelError(
            f"{checkpoint.path}: tensor {name} has shape {list(stored)}, the configuration wants {list(wanted)}"
        )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = "" if len(ordered) <= _NAMED else f" and {len(ordered) - _NAMED} more"
    return ", ".join(ordered[:_NAMED]) + more
