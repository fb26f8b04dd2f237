"""Which modules a kernel takes over: those that compute the same, and no others."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from runtime.engine.attention import ATTENTION
from runtime.engine.fusing import fuse
from runtime.engine.kernels.library import Kernels, kernels
from runtime.engine.packing import pack_linears
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model


@pytest.fixture
def own() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("this machine has no C compiler")
    return found


def fused(path: Path, own: Kernels) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the classes that got another forward."""
    model = load_model(open_checkpoint(path), torch.float32, ATTENTION)
    pack_linears(model, 0, own)
    fuse(model, torch.float32, own)
    return model, {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


TAKEN = {
    "llama": {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"},
    "qwen3": {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention"},
    "gemma2": {"Gemma2RMSNorm", "Gemma2MLP", "Gemma2Attention"},
    "granite": {"GraniteRMSNorm", "GraniteMLP", "GraniteAttention"},
    # Heads that are turned in part, a gate and what it lets through from one layer.
    "phi3": {"Phi3RMSNorm", "Phi3Attention"},
    # Means are taken off, pairs of neighbours are turned.
    "cohere2": {"Cohere2MLP"},
    # No gate, and a norm with a bias.
    "gpt2": set(),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_computes_the_same_is_taken_over_and_nothing_else(
    kind: str, checkpoint: Callable[[str], Path], own: Kernels
) -> None:
    _, taken = fused(checkpoint(kind), own)
    assert taken == TAKEN[kind]


class Scaled(nn.Module):
    """Looks like a norm, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64), requires_grad=False)
        self.eps = 1e-6

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.weight


class Gated(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 48), nn.Linear(32, 48)
        self.down_proj, self.activation = nn.Linear(48, 32), activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.activation(self.gate_proj(inputs)) * self.up_proj(inputs))
        return output


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        (Scaled(), False),
        (Gated(nn.ReLU()), False),
        (Gated(nn.GELU()), False),
        (Gated(nn.GELU(approximate="tanh")), True),
        (Gated(nn.SiLU()), True),
    ],
    ids=["no norm", "relu", "exact gelu", "gelu", "silu"],
)
@torch.inference_mode()
def test_what_only_looks_alike_stays_as_it_is(module: nn.Module, taken: bool, own: Kernels) -> None:
    model = nn.Sequential(module).requires_grad_(False)
    inputs = torch.randn(1, 5, 64 if isinstance(module, Scaled) else 32)
    expected = copy.deepcopy(model)(inputs)
    pack_linears(model, 0)
    fuse(model, torch.float32, own)
    assert ("forward" in vars(module)) is taken
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)
