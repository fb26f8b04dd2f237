"""How engines keep keys and values of one layer in memory: layouts as data, and views that make all of them alike.

A layout names the axes of its tensors, outermost first, by letters; an axis of several letters holds several, the last
running fastest:

    b   block of the engine, of its own number of tokens (for a contiguous cache: a sequence, of all its tokens)
    t   token within the block
    s   side: key, value
    h   head, of those that this rank holds
    e   element of the head

So every layout is a view of its memory away from `[block, token, head, element]`, and nothing is copied to look at it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from runtime.domain.spec import Kind
from runtime.errors import InvalidArgument

_SEEN_AS = "bthe"


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of one layer's memory on one rank; `heads` are those that it holds."""

    blocks: int
    block_tokens: int
    heads: int
    head_dim: int

    def of(self, axis: str) -> int:
        """Of an axis, which may hold several."""
        sizes = {"b": self.blocks, "t": self.block_tokens, "s": 2, "h": self.heads, "e": self.head_dim}
        return math.prod(sizes[letter] for letter in axis)


@dataclass(frozen=True, slots=True)
class Layout:
    """`tensors` are the axes of each tensor of a layer: one that holds both sides (or a latent), or keys, then values.
    `spare` blocks, which are nobody's, are in them beside those that are used."""

    name: str
    tensors: tuple[tuple[str, ...], ...]
    kind: Kind = Kind.KV
    spare: int = 0

    def shapes(self, extent: Extent) -> list[tuple[int, ...]]:
        """Of the tensors of one layer; `extent.blocks` includes spare ones."""
        return [tuple(extent.of(axis) for axis in axes) for axes in self.tensors]

    def views(self, tensors: Sequence[torch.Tensor], extent: Extent) -> tuple[torch.Tensor, ...]:
        """Of each side, the memory as `[block, token, head, element]`: keys and values, or a latent.

        Raises `InvalidArgument` when the tensors are not those of this layout.
        """
        found, wanted = [tuple(tensor.shape) for tensor in tensors], self.shapes(extent)
        if found != wanted:
            raise InvalidArgument(f"layout {self.name}: tensors are {found}, expected {wanted}", field="layout")
        return tuple(
            side for tensor, axes in zip(tensors, self.tensors, strict=True) for side in _sides(tensor, axes, extent)
        )

    def allocate(self, extent: Extent, dtype: torch.dtype) -> list[torch.Tensor]:
        """Zeros, of one layer."""
        return [torch.zeros(shape, dtype=dtype) for shape in self.shapes(extent)]


def _sides(tensor: torch.Tensor, axes: tuple[str, ...], extent: Extent) -> Iterator[torch.Tensor]:
    letters = "".join(axes)
    taken_apart = tensor.view([extent.of(letter) for letter in letters])
    for side in taken_apart.unbind(letters.index("s")) if "s" in letters else (taken_apart,):
        left = letters.replace("s", "")
        if "h" not in left:
            side, left = side.unsqueeze(0), f"h{left}"
        yield side.permute([left.index(letter) for letter in _SEEN_AS])


_BHTE, _BTHE = ("b", "h", "t", "e"), ("b", "t", "h", "e")
LAYOUTS = {
    layout.name: layout
    for layout in (
        # This project's own pool, of each layer.
        Layout("baton", (("s", "b", "t", "h", "e"),)),
        # This project on Neuron cores: slots one after the other, and a null page first.
        Layout("slots", (("bt", "h", "e"),) * 2, spare=1),
        # NxDI, contiguous: a block is a sequence. Keys may be transposed.
        Layout("nxdi", (_BHTE,) * 2),
        Layout("nxdi_transposed", (("b", "h", "e", "t"), _BHTE)),
        # NxDI with prefix caching, and with chunked prefill.
        Layout("nxdi_prefix", (_BTHE,) * 2, spare=1),
        Layout("nxdi_chunked", (_BHTE,) * 2),
        Layout("vllm_neuron", (("s", "b", "h", "t", "e"),)),
        # vLLM on CUDA: the element of a value follows those of its key.
        Layout("vllm_cuda", (("b", "h", "t", "se"),)),
        # Latents, as vLLM keeps them.
        Layout("latent", (("b", "t", "e"),), Kind.LATENT),
    )
}


def layout_of(name: str, kind: Kind) -> Layout:
    """Raises `InvalidArgument` for a layout that is not known, or does not hold this kind."""
    layout = LAYOUTS.get(name)
    if layout is None:
        raise InvalidArgument(f"layout {name!r} is not known; there are {', '.join(LAYOUTS)}", field="layout")
    if layout.kind is not kind:
        raise InvalidArgument(f"layout {name} holds {layout.kind.value}, not {kind.value}", field="layout")
    return layout
