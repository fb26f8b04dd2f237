"""A rank's KV memory, of whatever layout and block size, away from and into the canonical order of tokens.

A sequence is its block table, in the engine's own blocks; pages are ranges of its tokens. So whether a block holds
several pages or a page several blocks makes no difference. Whole ranges move at once, never token by token.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from runtime.kv.layouts import Extent, Layout
from runtime.kv.packed import Packing


class LayerMemory(Protocol):
    """The memory of one layer on one rank."""

    def gather(self, blocks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[side, n, head, element]` of the tokens `[n]` in the blocks `[n]`."""

    def scatter(self, blocks: torch.Tensor, tokens: torch.Tensor, content: torch.Tensor) -> None:
        """The inverse."""


class LaidLayer:
    """Tensors of a layout."""

    def __init__(self, layout: Layout, tensors: Sequence[torch.Tensor], extent: Extent) -> None:
        self._sides = layout.views(tensors, extent)

    def gather(self, blocks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([side[blocks, tokens] for side in self._sides])

    def scatter(self, blocks: torch.Tensor, tokens: torch.Tensor, content: torch.Tensor) -> None:
        for side, part in zip(self._sides, content, strict=True):
            side[blocks, tokens] = part


class PackedLayer:
    """A tensor whose blocks are packed."""

    def __init__(self, packing: Packing, memory: torch.Tensor) -> None:
        self._where = packing.where
        self._blocks = memory.view(memory.shape[0], -1)

    def gather(self, blocks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._blocks[blocks[:, None, None, None], self._where[tokens]].transpose(0, 1).contiguous()

    def scatter(self, blocks: torch.Tensor, tokens: torch.Tensor, content: torch.Tensor) -> None:
        self._blocks[blocks[:, None, None, None], self._where[tokens]] = content.transpose(0, 1)


class PagedMemory:
    """All layers of one group on one rank, in blocks of `block_tokens` tokens."""

    def __init__(self, layers: Sequence[LayerMemory], block_tokens: int) -> None:
        self._layers = layers
        self._block_tokens = block_tokens

    def read(self, table: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """`[layer, side, token, head, element]` of `count` tokens from `first` on, of the sequence whose blocks are
        `table`, `[n]` int64: a payload of this rank's heads, as it stands."""
        blocks, tokens = self._places(table, first, count)
        return torch.stack([layer.gather(blocks, tokens) for layer in self._layers])

    def write(self, table: torch.Tensor, first: int, content: torch.Tensor) -> None:
        """The inverse of `read`; nothing but those tokens is touched."""
        blocks, tokens = self._places(table, first, content.shape[2])
        for layer, part in zip(self._layers, content, strict=True):
            layer.scatter(blocks, tokens, part)

    def _places(self, table: torch.Tensor, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(first, first + count)
        return table[positions // self._block_tokens], positions % self._block_tokens
