"""A model's linear layers with their weights laid out for this CPU once, instead of anew in every product.

One row waits for the weights to be read: packed ones are read 1.5 times faster. Many rows wait for arithmetic, and
without AMX float32 multiplies twice as fast as bfloat16; where memory allows, bfloat16 layers are kept in both forms
there. (`baton bench engine` on two cores of a Xeon with avx512_bf16 and without AMX.)
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

# Up to here reading the weights takes longer than multiplying with them.
_FEW_ROWS = 32
_WIDE_SHARE = 0.25
_AMX = "amx_bf16"
_mkldnn: Any = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """Computes what the linear layer that it is made of computes, and keeps nothing of it.

    `widened`: with a float32 copy of the weight for many rows.
    """

    def __init__(self, linear: nn.Linear, *, widened: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._few = _Packed(linear, linear.weight.dtype)
        self._many = _Packed(linear, torch.float32) if widened else self._few

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        packed = self._few if len(rows) <= _FEW_ROWS else self._many
        return packed(rows).to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


class _Packed:
    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._weight = _mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        bias = dict(linear.named_parameters()).get("bias")
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(self._dtype)
        product: torch.Tensor = _mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product


def pack_linears(model: nn.Module, free: int) -> None:
    """Replace, in place, every plain linear layer of a model on the CPU that is not trained any more.

    `free` are bytes of memory that nobody needs; no more than a quarter of them is taken.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    widened = _widens(model, free)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child, widened=widened))


def _widens(model: nn.Module, free: int) -> bool:
    """Whether float32 copies pay and fit."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.dtype is torch.bfloat16)
    return 0 < weights * torch.float32.itemsize <= _WIDE_SHARE * free and not _multiplies_bfloat16_fast()


def _multiplies_bfloat16_fast() -> bool:
    try:
        return _AMX in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
