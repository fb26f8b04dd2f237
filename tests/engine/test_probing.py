"""The probe finds out by running what a configuration does not say, and names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.masking_utils import create_chunked_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama

from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore
from runtime.engine.kv_tensors import DTYPES, KVTensors
from runtime.engine.runner import TorchRunner
from runtime.errors import ModelError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec
from tests.engine.architectures import REFUSED


def of_llama(path: Path, dtype: str = "float32") -> TorchRunner:
    opened = open_checkpoint(path)
    spec = checkpoint_spec(opened, name="tiny", dtype=dtype, page_tokens=32)
    return TorchRunner(load_model(opened, DTYPES[dtype], ATTENTION), KVTensors(spec, 4))


@pytest.fixture
def runner(checkpoint: Callable[[str], Path]) -> TorchRunner:
    return of_llama(checkpoint("llama"))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_attends_as_no_page_can_tell_is_refused(kind: str, engine: Callable[..., EngineCore]) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind]):
        engine(kind)


def test_a_model_is_left_as_it_was(runner: TorchRunner) -> None:
    runner.probe()
    assert runner._model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_reach_each_other_beside_attention_are_refused(
    dtype: str, layer: int, checkpoint: Callable[[str], Path]
) -> None:
    """As convolutions, token shifts and states of other kinds let them."""
    runner = of_llama(checkpoint("llama"), dtype)
    mlp = runner._model.model.layers[layer].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: plain(hidden + hidden.roll(1, dims=1))
    with pytest.raises(ModelError, match="what a token becomes depends on its neighbours"):
        runner.probe()


def test_positions_that_are_counted_instead_of_taken_are_refused(runner: TorchRunner) -> None:
    rotary = runner._model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda hidden, position_ids: original(hidden, torch.arange(hidden.shape[1])[None])
    with pytest.raises(ModelError, match="what a token becomes depends on its neighbours"):
        runner.probe()


@pytest.mark.parametrize(
    ("mask", "setting", "message"),
    [
        (create_chunked_causal_mask, {"attention_chunk_size": 32}, "neither causal nor a sliding window"),
        (create_sliding_window_causal_mask, {"sliding_window": 40}, "masks a window of 40 tokens and passes None"),
    ],
)
def test_a_mask_that_is_not_what_attention_is_told_is_refused(
    runner: TorchRunner,
    mask: Callable[..., Any],
    setting: dict[str, int],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner._model.config.update(setting)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", mask)
    with pytest.raises(ModelError, match=message):
        runner.probe()
