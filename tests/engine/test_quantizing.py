"""Weights of 8 bits: how far from the exact product, what is rounded and what is not, and how well it still recalls."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling
from runtime.engine.native import NativeSettings, build_native, spec_of
from runtime.engine.quantizing import QuantizedLinear
from runtime.errors import ModelError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.recall.evaluation import GreedyModel, held_out_recall
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.tokenizer import Tokenizer
from tests.engine.answering import answers, sequence, split
from tests.scale import scaled

ROWS = (1, 2, 32, 33, 200)
HISTORY = 128


def settings(path: Path, *, quantized: bool, dtype: str = "bfloat16") -> NativeSettings:
    return NativeSettings("q", path, dtype, 32, 1, quantized=quantized)


def linear(inputs: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    bias = dict(layer.named_parameters()).get("bias")
    product = inputs.double() @ layer.weight.double().T
    return product if bias is None else product + bias.double()


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_quantized_layer_is_as_near_as_rounding_allows_for_any_number_of_rows(bias: bool) -> None:
    torch.manual_seed(5)
    plain = [nn.Linear(96, size, bias=bias).bfloat16().requires_grad_(False) for size in (40, 8)]
    quantized = QuantizedLinear(*plain)
    for rows in ROWS:
        inputs = torch.randn(2, rows, 96).bfloat16()
        exact = torch.cat([linear(inputs, each) for each in plain], -1)
        steps = torch.cat([each.weight.double().abs().amax(1) / 127 for each in plain])
        bound = inputs.double().abs().sum(-1, keepdim=True) * steps / 2 + 2**-7 * (exact.abs() + 1)
        output = quantized(inputs)
        assert (output.shape, output.dtype) == ((2, rows, 48), torch.bfloat16)
        assert bool(((output.double() - exact).abs() <= bound).all())


def test_an_output_without_weights_stays_zero() -> None:
    plain = nn.Linear(96, 32, bias=False).bfloat16().requires_grad_(False)
    plain.weight[3] = 0
    assert bool((QuantizedLinear(plain)(torch.randn(1, 96).bfloat16())[:, 3] == 0).all())


def test_it_is_another_model_to_the_mesh_and_needs_bfloat16(checkpoint: Callable[[str], Path]) -> None:
    opened = open_checkpoint(checkpoint("llama"))
    plain, quantized = (
        spec_of(opened, settings(opened.path, quantized=quantized)).kv_fingerprint for quantized in (False, True)
    )
    assert plain != quantized
    with pytest.raises(ModelError, match="in bfloat16 only; dtype is float32"):
        spec_of(opened, settings(opened.path, quantized=True, dtype="float32"))


def test_the_shipped_model_recalls_with_8_bits_what_it_recalls_without() -> None:
    """Split or not: a prefill worker rounds the same way."""
    tokenizer, rng = Tokenizer(SHIPPED_MODEL), random.Random(3)
    encoded = GreedyModel(SHIPPED_MODEL).tokenizer
    recalls = [held_out_recall(rng, encoded, HISTORY) for _ in range(scaled(24, 200))]
    asked = [
        sequence(
            str(number),
            tuple(tokenizer.render_chat([{"role": role, "content": text} for role, text in recall.messages])),
            Sampling(max_tokens=40, temperature=0.0),
        )
        for number, recall in enumerate(recalls)
    ]
    wide, narrow, prefilling = (
        build_native(settings(SHIPPED_MODEL, quantized=quantized), Limits(512, 8), lambda _: 200)
        for quantized in (False, True, True)
    )
    before, after = answers(wide, asked), answers(narrow, asked)
    right = [tokenizer.decode(after[str(number)]) == recall.answer for number, recall in enumerate(recalls)]
    same = [before[name] == after[name] for name in before]
    assert sum(right) >= 0.9 * len(right)  # 0.97 of 200
    assert sum(same) >= 0.9 * len(same)  # 0.995 of 200
    assert split(prefilling, narrow, asked[0]) == after[asked[0].id]
