"""The checkpoints that the tests of this folder share, and what transformers itself answers with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama, make_qwen

KINDS = ("llama", "qwen2", "qwen3")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors as small as here gain nothing from more, and lose much beside other processes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint of one of `KINDS`, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def path(kind: str) -> Path:
        if not (root / kind).exists():
            if kind == "llama":
                make_llama(root / kind)
            else:
                make_qwen(root / kind, generation=int(kind[-1]))
        return root / kind

    return path


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """The same checkpoint in transformers' own eager attention, float32."""
    loaded: dict[str, PreTrainedModel] = {}

    def model(kind: str) -> PreTrainedModel:
        if kind not in loaded:
            loaded[kind] = load_model(open_checkpoint(checkpoint(kind)), torch.float32, "eager")
            loaded[kind].generation_config.eos_token_id = None
        return loaded[kind]

    return model
