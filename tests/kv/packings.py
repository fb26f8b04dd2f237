"""Kernels that pack their cache, as processors with wide or matrix instructions like it; only their writing is seen."""

from collections.abc import Callable

import torch

from runtime.kv.layouts import Extent
from runtime.kv.packed import Store

# Of the keys and of the values of a block, `[token, head, element]`, how their elements lie.
_Pack = Callable[[torch.Tensor], torch.Tensor]


def _pairs_of_elements(side: torch.Tensor) -> torch.Tensor:
    """`[head, element pair, token, 2]`."""
    return side.view(*side.shape[:2], -1, 2).permute(1, 2, 0, 3)


def _pairs_of_tokens(side: torch.Tensor) -> torch.Tensor:
    """`[head, token pair, element, 2]`."""
    return side.view(-1, 2, *side.shape[1:]).permute(2, 0, 3, 1)


def _columns(side: torch.Tensor) -> torch.Tensor:
    """`[head, element, token]`."""
    return side.permute(1, 2, 0)


PACKINGS: dict[str, tuple[_Pack, _Pack]] = {
    "matrix": (_pairs_of_elements, _pairs_of_tokens),
    "vector": (_columns, _pairs_of_elements),
}


def packed_store(name: str, memory: torch.Tensor, extent: Extent) -> Store:
    """The operation that writes into `memory`, `[blocks, elements]`."""
    keys_packed, values_packed = PACKINGS[name]
    shape = (extent.block_tokens, extent.heads, extent.head_dim)
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    # Of each place in the packed half of a block, which element is there.
    orders = [keys_packed(numbers).flatten(), values_packed(numbers).flatten()]
    half = numbers.numel()

    def store(slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        blocks, tokens = slots // extent.block_tokens, slots % extent.block_tokens
        for number, content in enumerate((keys, values)):
            for block in sorted(set(blocks.tolist())):
                own = memory[block, number * half : (number + 1) * half]
                inside = torch.empty(half, dtype=memory.dtype)
                inside[orders[number]] = own
                inside = inside.view(shape)
                inside[tokens[blocks == block]] = content[blocks == block]
                own.copy_(inside.flatten()[orders[number]])

    return store
