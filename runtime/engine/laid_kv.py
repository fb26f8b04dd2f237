"""A pool in the host's memory that lies as another engine's would: another layout, and blocks of another size.

So a mesh of unlike engines runs on one machine. It is read through copies, and slower than `KVTensors`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from runtime.domain.spec import Kind, ModelSpec
from runtime.engine.kv_tensors import CPU, DTYPES, KVTensors, StepKV
from runtime.engine.paging import PageList
from runtime.kv.layouts import Extent, layout_of
from runtime.kv.memory import LaidLayer, PagedMemory


@dataclass(frozen=True, slots=True)
class PoolForm:
    """How a pool lies in memory: the name of a layout, and how many tokens a block has; None: as many as a page."""

    layout: str = "baton"
    block_tokens: int | None = None


# As `KVTensors` has it.
OWN_FORM = PoolForm()


def pool_of(spec: ModelSpec, pages: int, form: PoolForm) -> StepKV:
    """A pool of `pages` pages that lies as `form` says. Raises `InvalidArgument` for a layout that is not known."""
    return KVTensors(spec, pages) if form == OWN_FORM else LaidKV(spec, pages, form)


class LaidKV:
    """`kv_tensors.StepKV` over the tensors of a layout. The tokens of the pool's pages lie in its blocks one after the
    other, so that page `p` begins at token `p * page_tokens` of block 0."""

    def __init__(self, spec: ModelSpec, pages: int, form: PoolForm) -> None:
        self.spec = spec
        self.device = CPU
        self.page_tokens = spec.page_tokens
        self.zero_page = pages
        self.dtype = DTYPES[spec.dtype]
        layout, size = layout_of(form.layout, Kind.KV), form.block_tokens or spec.page_tokens
        blocks = -(-(pages + 1) * spec.page_tokens // size)
        extent = Extent(blocks + layout.spare, size, spec.kv_heads, spec.head_dim)
        self._layers = [LaidLayer(layout, layout.allocate(extent, self.dtype), extent) for _ in range(spec.layers)]
        self._memory = PagedMemory(self._layers, size)
        self._size = size
        # One table for the whole pool; spare blocks come first.
        self._table = torch.arange(layout.spare, blocks + layout.spare)

    @property
    def layer_page_bytes(self) -> int:
        """Bytes of the keys and values that one page holds of one layer."""
        return self.spec.page_bytes // self.spec.layers

    def clear(self, pages: torch.Tensor) -> None:
        """Zero whole pages, `[n]` int64, in all layers."""
        places = self._places(self._slots(pages))
        shape = (2, len(pages) * self.page_tokens, self.spec.kv_heads, self.spec.head_dim)
        for layer in self._layers:
            layer.scatter(*places, torch.zeros((), dtype=self.dtype).expand(shape))

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `[n, kv_heads, head_dim]` keys and values at `slots`, `[n]` int64: page * page_tokens + offset."""
        self._layers[layer].scatter(*self._places(slots), torch.stack((keys, values)))

    def lying(self, layer: int) -> None:
        """Nothing here lies as the pages of a `KVTensors` do."""

    def read(self, layer: int, pages: PageList) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `pages`, each `[n, page_tokens, kv_heads, head_dim]`."""
        found = self._layers[layer].gather(*self._places(self._slots(pages.numbers)))
        keys, values = found.view(2, len(pages.numbers), self.page_tokens, *found.shape[2:])
        return keys, values

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """The canonical payload of each page and number of tokens."""
        return [
            self._memory.read(self._table, page * self.page_tokens, tokens).view(torch.uint8).numpy().tobytes()
            for page, tokens in pages
        ]

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]:
        """The canonical payload of these layers alone, of each page and number of tokens."""
        wanted = tuple(pages)
        size = self.spec.token_bytes // self.spec.layers
        cuts = [slice(layers.start * size * tokens, layers.stop * size * tokens) for _, tokens in wanted]
        return [whole[cut] for whole, cut in zip(self.read_pages(wanted), cuts, strict=True)]

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        """The inverse of `read_pages`; the page's other tokens become zero."""
        spec = self.spec
        content = torch.zeros(spec.layers, 2, self.page_tokens, spec.kv_heads, spec.head_dim, dtype=self.dtype)
        target = content.view(torch.uint8).numpy()[:, :, :tokens]
        target[...] = np.frombuffer(payload, np.uint8).reshape(target.shape)
        self._memory.write(self._table, page * self.page_tokens, content)

    def _slots(self, pages: torch.Tensor) -> torch.Tensor:
        return (pages[:, None] * self.page_tokens + torch.arange(self.page_tokens)).flatten()

    def _places(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._table[slots // self._size], slots % self._size
