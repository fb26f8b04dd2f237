"""Weights of linear layers rounded to 8 bits: half the memory of bfloat16, and half to read for each token.

One scale per output, symmetric around zero, rounded when the model is loaded; activations are not rounded. The output
embedding keeps its dtype: what it rounds away decides between tokens.
"""

import torch
from torch import nn
from torch.nn.functional import linear

from runtime.engine.packing import joined_bias, multiplies_bfloat16_fast, replace_linears

# From here on it costs less to widen the weights for a step than to multiply with them as they are.
_FEW_ROWS = 32
_LARGEST = 127
_TINY = 1e-12


class QuantizedLinear(nn.Module):
    """Computes nearly what the linear layers that it is made of compute, one after the other's outputs."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(each.out_features for each in linears)
        weights = torch.cat([each.weight.detach() for each in linears]).float()
        scales = weights.abs().amax(1).clamp_min(_TINY) / _LARGEST
        self._weight = (weights / scales[:, None]).round().to(torch.int8)
        self._scales = scales.to(torch.bfloat16)
        self._bias = joined_bias(linears, torch.bfloat16)
        self._wide = torch.bfloat16 if multiplies_bfloat16_fast() else torch.float32

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        product: torch.Tensor
        if len(rows) <= _FEW_ROWS:
            product = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scales)
        else:
            product = (linear(rows.to(self._wide), self._weight.to(self._wide)) * self._scales).to(inputs.dtype)
        if self._bias is not None:
            product = product + self._bias
        return product.view(*inputs.shape[:-1], self.out_features)


def quantize_linears(layers: nn.Module) -> None:
    """Replace, in place, every plain linear layer of a model's layers, in bfloat16 on the CPU."""
    replace_linears(layers, QuantizedLinear)
