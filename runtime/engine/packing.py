"""A model's linear layers with their weights laid out for this CPU once, instead of anew in every product.

One row waits for the weights to be read: packed ones are read 1.5 times faster. Many rows wait for arithmetic, and
without AMX float32 multiplies twice as fast as bfloat16: there our own kernel reads the one and computes in the other;
where it is missing, bfloat16 layers are kept in both forms if memory allows. Layers that multiply one input are one
product: each product waits for all threads. (`baton bench engine` on two cores of a Xeon with avx512_bf16 and without
AMX.)
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.engine.kernels.library import Kernels, TiledWeights

# Up to here reading the weights takes longer than multiplying with them.
_FEW_ROWS = 32
_WIDE_SHARE = 0.25
_AMX = "amx_bf16"
# What transformers' models call the layers of one module that are given the same input, in the order of their calls.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_mkldnn: Any = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """Computes what the linear layers that it is made of compute, one after the other's outputs, and keeps nothing of
    them.

    `widened`: with a float32 copy of the weights for many rows.
    """

    def __init__(self, *linears: nn.Linear, widened: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(each.out_features for each in linears)
        self._few = _Packed(linears, linears[0].weight.dtype)
        self._many = _Packed(linears, torch.float32) if widened else self._few

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features)
        packed = self._few if len(rows) <= _FEW_ROWS else self._many
        return packed(rows).to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


class TiledLinear(nn.Module):
    """The same in bfloat16 by a kernel of our own, from one form of the weights for any number of rows."""

    def __init__(self, *linears: nn.Linear, kernels: Kernels) -> None:
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(each.out_features for each in linears)
        weight = torch.cat([each.weight.detach() for each in linears])
        self._weights = TiledWeights.of(weight, joined_bias(linears, torch.float32))
        self._kernels = kernels

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = self._kernels.product(inputs.reshape(-1, self.in_features), self._weights)
        return product.view(*inputs.shape[:-1], self.out_features)


class SharedProduct:
    """The product of layers that are given the same input: the first to be called computes it for all.

    `whole` gives their outputs, of `sizes`, one after the other.
    """

    def __init__(self, whole: nn.Module, sizes: Sequence[int]) -> None:
        self.whole = whole
        self._sizes = list(sizes)
        self._inputs: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def part(self, member: int, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer number `member` makes of the inputs."""
        if inputs is not self._inputs or member not in self._parts:
            self._inputs = inputs
            self._parts = dict(enumerate(self.whole(inputs).split(self._sizes, -1)))
        part = self._parts.pop(member)
        if not self._parts:
            self._inputs = None
        return part


class ProductPart(nn.Module):
    """One of the layers of a `SharedProduct`."""

    def __init__(self, product: SharedProduct, member: int) -> None:
        super().__init__()
        self.product, self._member = product, member

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.product.part(self._member, inputs)


class _Packed:
    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._dtype = dtype
        weight = torch.cat([each.weight.detach().to(dtype) for each in linears])
        self._weight = _mkldnn._reorder_linear_weight(weight, None)
        self._bias = joined_bias(linears, dtype)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(self._dtype)
        product: torch.Tensor = _mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product


def joined_bias(linears: Sequence[nn.Linear], dtype: torch.dtype) -> torch.Tensor | None:
    """`[outputs of all]`; either all layers have a bias or none has."""
    biases = [dict(each.named_parameters()).get("bias") for each in linears]
    present = [bias.detach().to(dtype) for bias in biases if bias is not None]
    assert len(present) in (0, len(linears))
    return torch.cat(present) if present else None


def pack_linears(model: nn.Module, free: int, kernels: Kernels | None = None) -> None:
    """Replace, in place, every plain linear layer of a model on the CPU that is not trained any more.

    `free` are bytes of memory that nobody needs; no more than a quarter of them is taken. `kernels` multiply what they
    multiply faster.
    """
    slow = {each.weight.dtype for each in model.modules() if type(each) is nn.Linear} == {torch.bfloat16}
    if kernels is not None and slow and not multiplies_bfloat16_fast():
        replace_linears(model, partial(TiledLinear, kernels=kernels))
    elif torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        replace_linears(model, partial(PackedLinear, widened=_widens(model, free)))


def replace_linears(model: nn.Module, make: Callable[..., nn.Module]) -> None:
    """Replace every plain linear layer in place by what `make` makes of it; of those that are given the same input,
    by parts of what it makes of all."""
    for parent in [module for module in model.modules() if type(module) is not nn.Linear]:
        plain = {name: child for name, child in parent.named_children() if type(child) is nn.Linear}
        for names in _TOGETHER:
            if together := _alike([plain.get(name) for name in names]):
                product = SharedProduct(make(*together), [each.out_features for each in together])
                for member, name in enumerate(names):
                    setattr(parent, name, ProductPart(product, member))
                    del plain[name]
        for name, child in plain.items():
            setattr(parent, name, make(child))


def _alike(linears: Sequence[nn.Linear | None]) -> list[nn.Linear]:
    """The layers, if none is missing and one product can compute all."""
    present = [each for each in linears if each is not None]
    kinds = {(each.in_features, each.weight.dtype, "bias" in dict(each.named_parameters())) for each in present}
    return present if len(present) == len(linears) and len(kinds) == 1 else []


def _widens(model: nn.Module, free: int) -> bool:
    """Whether float32 copies pay and fit."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.dtype is torch.bfloat16)
    return 0 < weights * torch.float32.itemsize <= _WIDE_SHARE * free and not multiplies_bfloat16_fast()


@cache
def multiplies_bfloat16_fast() -> bool:
    """Whether this CPU has a unit for it."""
    try:
        return _AMX in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
