"""A Hugging Face directory, opened: its configuration and where its tensors are. Never loads them, never asks a hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ModelError
from runtime.model.shards import StoredTensor, read_header
from runtime.model.support import refusal

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`config` is config.json as it stands; `tensors` are all tensors of all shards by name."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises `ModelError` saying what is missing, damaged or not supported yet, before any tensor is read."""
    if not path.is_dir():
        raise ModelError(f"{path}: there is no such model directory")
    config = _read_json(path / CONFIG_FILE)
    _check_supported(path, config)
    return Checkpoint(path, config, _open_weights(path))


def _check_supported(path: Path, config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelError(f"{path / CONFIG_FILE}: architectures is missing or empty")
    reason = refusal(config)
    if reason is not None:
        raise ModelError(f"{path}: {reason}")


def _open_weights(path: Path) -> dict[str, StoredTensor]:
    if (path / WEIGHTS_FILE).is_file():
        return {tensor.name: tensor for tensor in read_header(path / WEIGHTS_FILE)}
    if (path / INDEX_FILE).is_file():
        return _open_shards(path, _read_json(path / INDEX_FILE))
    raise ModelError(f"{path}: there are no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _open_shards(path: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError(f"{path / INDEX_FILE}: weight_map is missing or empty")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(placed.values())):
        file = path / name
        if not file.is_file():
            raise ModelError(f"{path / INDEX_FILE}: names {name}, which is not there")
        tensors |= {tensor.name: tensor for tensor in read_header(file)}
    for name, shard in placed.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelError(f"{path / INDEX_FILE}: places tensor {name} in {shard}, which does not hold it")
    return tensors


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file.parent}: there is no {file.name}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: is not a JSON object")
    return content
