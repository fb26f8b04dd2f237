"""Modules of a model whose element-wise work one kernel does in one pass, each found out by trying it.

Nothing is concluded from names alone: what a module computes is compared with what the kernel would, and only where
both agree the kernel is given its place.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from runtime.engine.kernels.library import Kernels
from runtime.engine.packing import ProductPart

_Forward = Callable[[torch.Tensor], torch.Tensor]
# How far apart they may be, relative: what another order of sums and one rounding less make.
_APART = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_ROWS = 3
# What transformers' attention calls to turn queries and keys by their positions.
_ROTARY = "apply_rotary_pos_emb"
_GATE, _UP, _DOWN = "gate_proj", "up_proj", "down_proj"


@torch.inference_mode()
def fuse(model: nn.Module, dtype: torch.dtype, kernels: Kernels) -> None:
    """Give modules of a model on the CPU, packed before, a forward of fewer passes where it computes the same.
    `dtype` is that of activations."""
    turning: dict[type[nn.Module], FunctionType | None] = {}
    for module in list(model.modules()):
        for width, forward in (*_norms(module, kernels), *_gated(module, kernels)):
            if _agree(module, forward, torch.randn(1, _ROWS, width, generator=_source()).to(dtype)):
                module.__dict__["forward"] = forward
                break
        kind = type(module)
        if kind not in turning:
            turning[kind] = _turning(kind, kernels)
        if (turned := turning[kind]) is not None:
            module.__dict__["forward"] = MethodType(turned, module)


def _source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _agree(module: nn.Module, forward: _Forward, inputs: torch.Tensor) -> bool:
    """Whether both compute the same, up to a last layer, which may be one that other processes have to join."""
    last = module._modules.get(_DOWN)
    if last is not None:
        module._modules[_DOWN] = nn.Identity()
    try:
        return _near(forward(inputs), module.forward(inputs))
    finally:
        if last is not None:
            module._modules[_DOWN] = last


def _near(own: torch.Tensor, theirs: torch.Tensor) -> bool:
    if own.shape != theirs.shape or own.dtype != theirs.dtype:
        return False
    return bool((own.float() - theirs.float()).norm() <= _APART[own.dtype] * theirs.float().norm())


def _norms(module: nn.Module, kernels: Kernels) -> list[tuple[int, _Forward]]:
    """What a module may be whose only parameter is a weight: an RMS norm by it, or by one more than it."""
    parameters = dict(module.named_parameters())
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if set(parameters) != {"weight"} or parameters["weight"].dim() != 1 or not isinstance(epsilon, float):
        return []
    weight = parameters["weight"].detach().float()

    def norm(weights: torch.Tensor) -> _Forward:
        return lambda inputs: kernels.norm(inputs, weights, epsilon)

    return [(len(weight), norm(weight)), (len(weight), norm(weight + 1))]


def _gated(module: nn.Module, kernels: Kernels) -> list[tuple[int, _Forward]]:
    """What a module may be that has a gate, what it lets through, and a layer after both."""
    gate, up = (module._modules.get(name) for name in (_GATE, _UP))
    if not (isinstance(gate, ProductPart) and isinstance(up, ProductPart) and _DOWN in module._modules):
        return []
    both, width = gate.product.whole, gate.product.whole.in_features
    assert isinstance(width, int)

    def gated(*, smooth: bool) -> _Forward:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            last = module._modules[_DOWN]
            assert last is not None
            output: torch.Tensor = last(kernels.gate(both(inputs), smooth=smooth))
            return output

        return forward

    return [(width, gated(smooth=False)), (width, gated(smooth=True))]


def _turning(kind: type[nn.Module], kernels: Kernels) -> FunctionType | None:
    """The forward of a kind of attention with its rotary embedding done by the kernel; None where it has none, or
    another."""
    forward = kind.forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    original = forward.__globals__.get(_ROTARY)
    if original is None or not _turns_halves(original, kernels):
        return None

    def rotary(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - in the words of transformers
        return original(*given, **named) if named or not _plain(given) else _rotated(kernels, *given)

    own = FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTARY: rotary},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    return own


def _plain(given: tuple[Any, ...]) -> bool:
    """Queries, keys, cosines and sines of one row of tokens, and nothing else."""
    if len(given) != 4:
        return False
    queries, keys, cosines, sines = given
    alike = queries.dtype == keys.dtype == cosines.dtype == sines.dtype
    return bool(alike and len(queries) == 1 and queries.shape[-1] == keys.shape[-1] == cosines.shape[-1])


def _rotated(
    kernels: Kernels, queries: torch.Tensor, keys: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[1, heads, tokens, dim]` of as many; the angles are `[1, tokens, dim]`."""
    turned = (kernels.rotate(each[0].transpose(0, 1), cosines[0], sines[0]) for each in (queries, keys))
    rotated_queries, rotated_keys = (each.transpose(0, 1)[None] for each in turned)
    return rotated_queries, rotated_keys


def _turns_halves(original: Callable[..., Any], kernels: Kernels) -> bool:
    source = _source()
    given = [torch.randn(1, heads, _ROWS, 32, generator=source) for heads in (4, 2)]
    given += [torch.randn(1, _ROWS, 32, generator=source) for _ in range(2)]
    try:
        theirs = original(*given)
    except (TypeError, RuntimeError):
        return False
    return all(map(_near, _rotated(kernels, *given), theirs))
