"""Weights from a checkpoint into a transformers model that computes attention through Baton. No remote code, no hub."""

import inspect
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, Checkpoint
from runtime.model.parts import opened_parts, share_config
from runtime.model.share import FIELD, Share
from runtime.model.support import refusal

_NAMED = 5
# transformers patches torch for the whole process while it loads: two at a time lose tied tensors.
_LOADING = threading.Lock()


def model_class(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    """The class of transformers that the checkpoint names. Raises `ModelError` for one that Baton cannot run."""
    name, where = checkpoint.architecture, checkpoint.path
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ModelError(
            f"{where}: the architecture {name} is not supported: transformers {transformers.__version__} knows no "
            f"causal language model of that name, and code that a checkpoint brings along is never run"
        )
    kind: type[PreTrainedModel] = getattr(transformers, name)
    if kind._is_stateful:
        raise ModelError(f"{where}: the architecture {name} is not supported: it keeps a state beside keys and values")
    if not kind._supports_attention_backend or "logits_to_keep" not in inspect.signature(kind.forward).parameters:
        raise ModelError(f"{where}: the architecture {name} is not supported: its attention cannot be replaced")
    return kind


def load_config(checkpoint: Checkpoint, kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """The configuration with the defaults of its architecture filled in. Raises `ModelError` for what those bring."""
    config_class = kind.config_class
    assert config_class is not None
    file = checkpoint.path / CONFIG_FILE
    declared = checkpoint.config.get("model_type", config_class.model_type)
    if declared != config_class.model_type:
        raise ModelError(f"{file}: model_type is {declared}, that of {kind.__name__} is {config_class.model_type}")
    with _blaming(file):
        config = config_class.from_pretrained(checkpoint.path, local_files_only=True)
    assert isinstance(config, PreTrainedConfig)
    reason = refusal(config.to_dict())
    if reason is not None:
        raise ModelError(f"{checkpoint.path}: {reason}")
    return config


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model in evaluation mode on the CPU; `attention` names a registered attention implementation.

    Raises `ModelError` for an architecture that Baton cannot run, and naming the tensors that are missing, unexpected
    or of another shape.
    """
    kind = model_class(checkpoint)
    config = load_config(checkpoint, kind)
    return _load(checkpoint, kind, config, checkpoint.path, dtype, attention, use_safetensors=True)


def load_share(checkpoint: Checkpoint, dtype: torch.dtype, attention: str, share: Share) -> PreTrainedModel:
    """What one rank holds of a model, as `load_model` loads the whole; reads no more than that.

    Its sums are those of this rank's part alone. Raises `ModelError` for an architecture that cannot be split, too.
    """
    kind = model_class(checkpoint)
    config = share_config(load_config(checkpoint, kind), share)
    if not config.get_text_config().base_model_tp_plan:
        raise ModelError(f"{FIELD}: {kind.__name__} cannot be split: transformers has no plan of how to")
    try:
        with opened_parts(checkpoint, share) as tensors:
            return _load(checkpoint, kind, config, None, dtype, attention, state_dict=tensors)
    except ModelError as error:
        raise ModelError(f"{FIELD}: {kind.__name__} cannot be split, or is damaged: {error}") from error


def _load(
    checkpoint: Checkpoint,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    path: Path | None,
    dtype: torch.dtype,
    attention: str,
    **source: Any,  # noqa: ANN401 - where from, in the words of transformers
) -> PreTrainedModel:
    with _LOADING, _quiet(), _blaming(checkpoint.path):
        loaded: Any = kind.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source,
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
