"""A layout that neither shape nor strides describe, because an engine's kernels pack it for their instructions: found
out by writing through the engine's own operation and looking where each element went."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from runtime.errors import ModelError
from runtime.kv.layouts import Extent

Store = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Writes keys and values, `[n, heads, head_dim]` each, at `[n]` slots: block * block_tokens + token. The engine's."""

# Whole numbers that every data type of pages holds exactly.
_DIGITS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where in a block each element is: `[token, side, head, element]`, counted in elements from the block's first."""

    where: torch.Tensor


def probe_packing(memory: torch.Tensor, store: Store, extent: Extent) -> Packing:
    """The packing of `memory`, an engine's contiguous tensor whose first axis is blocks; it is zeros afterwards.

    Writes a block in its middle with numbers that tell every element from all others, digit by digit.
    Raises `ModelError` when an element is not found again exactly once, or another block changed.
    """
    blocks = memory.view(extent.blocks, -1)
    block, shape = extent.blocks // 2, (extent.block_tokens, 2, extent.heads, extent.head_dim)
    numbers = torch.arange(1, torch.Size(shape).numel() + 1).view(shape)
    slots = block * extent.block_tokens + torch.arange(extent.block_tokens)
    found = torch.zeros(blocks.shape[1], dtype=torch.int64)
    place = 1
    while place <= numbers.numel():
        blocks.zero_()
        digits = (numbers // place % _DIGITS).to(memory.dtype)
        store(slots, digits[:, 0].contiguous(), digits[:, 1].contiguous())
        if bool(blocks[:block].any()) or bool(blocks[block + 1 :].any()):
            raise ModelError("the KV cache cannot be read: what is written into a block changes another")
        found += blocks[block].float().round().long() * place
        place *= _DIGITS
    blocks.zero_()
    elements = torch.nonzero(found).flatten()
    where = torch.full((numbers.numel() + 1,), -1)
    known = found[elements].clamp(0, numbers.numel())
    where[known] = elements
    if len(elements) != numbers.numel() or bool((where[1:] < 0).any()):
        raise ModelError("the KV cache cannot be read: not every element that is written is found again exactly once")
    return Packing(where[1:].view(shape))
