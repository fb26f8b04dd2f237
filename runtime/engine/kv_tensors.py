"""The pool's keys and values. Owns their memory and its layout; who holds which page is the batcher's.

Tokens of a page that nobody wrote since it was handed out are zeros, so what is masked out is never a stale NaN.
"""

import math
import sys
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.host_memory import HostMemory
from runtime.engine.paging import PageList

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The canonical payload is little endian, and so are the tensors that it is copied from.
assert sys.byteorder == "little"


class StepKV(Protocol):
    """The pool as the steps of a model read and write it, and as its pages leave and enter; see `KVTensors`."""

    spec: ModelSpec
    device: torch.device
    page_tokens: int
    zero_page: int

    @property
    def layer_page_bytes(self) -> int: ...

    def clear(self, pages: torch.Tensor) -> None: ...

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None: ...

    def read(self, layer: int, pages: PageList) -> tuple[torch.Tensor, torch.Tensor]: ...

    def lying(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None where pages lie in another way than in `KVTensors`."""

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]: ...

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]: ...

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None: ...


class KVTensors:
    """`pages` pages of `[page_tokens, kv_heads, head_dim]` for the keys and the values of each layer.

    Page number `zero_page` is one more than the pool has: it is always zero, and pads short block tables.
    """

    def __init__(self, spec: ModelSpec, pages: int, device: torch.device = CPU) -> None:
        self.spec = spec
        self.device = device
        self.page_tokens = spec.page_tokens
        self.zero_page = pages
        self.dtype = DTYPES[spec.dtype]
        self._page_shape = (spec.page_tokens, spec.kv_heads, spec.head_dim)
        planes = (spec.layers, 2)
        self._memory = HostMemory(planes, pages + 1, self._page_shape, self.dtype) if device == CPU else None
        self._pool = (
            self._memory.tensor
            if self._memory is not None
            else torch.zeros((*planes, pages + 1, *self._page_shape), dtype=self.dtype, device=device)
        )
        # Views made once: making them takes longer than what a decode step does with them.
        self._pages = [(layer[0], layer[1]) for layer in self._pool]
        self._slots = [(layer[0].flatten(0, 1), layer[1].flatten(0, 1)) for layer in self._pool]
        self._gathered = self._pool.new_empty(2, 0, *self._page_shape)

    @cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return self._pool.view(torch.uint8).numpy()

    @property
    def layer_page_bytes(self) -> int:
        """Bytes of the keys and values that one page holds of one layer."""
        return 2 * math.prod(self._page_shape) * self.dtype.itemsize

    def clear(self, pages: torch.Tensor) -> None:
        """Zero whole pages, `[n]` int64, in all layers."""
        if self._memory is not None and len(pages):
            self._memory.reached(int(pages.max()))
        self._pool.index_fill_(2, pages, 0)

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `[n, kv_heads, head_dim]` keys and values at `slots`, `[n]` int64: page * page_tokens + offset."""
        own_keys, own_values = self._slots[layer]
        own_keys.index_copy_(0, slots, keys)
        own_values.index_copy_(0, slots, values)

    def lying(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all pages where they lie, each `[pages, page_tokens, kv_heads, head_dim]`."""
        return self._pages[layer]

    def read(self, layer: int, pages: PageList) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `pages`, each `[n, page_tokens, kv_heads, head_dim]`, to be used before the next `read`.

        Pages that do not lie beside each other are gathered in a workspace: fresh memory costs more than the copy.
        """
        own_keys, own_values = self._pages[layer]
        count = len(pages.numbers)
        if pages.first is not None:
            lying = slice(pages.first, pages.first + count)
            return own_keys[lying], own_values[lying]
        if self._gathered.shape[1] < count:
            self._gathered = self._pool.new_empty(2, count, *self._page_shape)
        keys, values = self._gathered[0, :count], self._gathered[1, :count]
        torch.index_select(own_keys, 0, pages.numbers, out=keys)
        torch.index_select(own_values, 0, pages.numbers, out=values)
        return keys, values

    def read_page(self, page: int, tokens: int) -> bytes:
        """The canonical payload `[layer, k|v, token, kv_head, head_dim]` of the first `tokens` tokens."""
        return self._bytes[:, :, page, :tokens].tobytes()

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """The payload of each page and number of tokens."""
        return [self.read_page(page, tokens) for page, tokens in pages]

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]:
        """The payload of these layers alone, of each page and number of tokens."""
        own = self._bytes[layers.start : layers.stop]
        return [own[:, :, page, :tokens].tobytes() for page, tokens in pages]

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        """The inverse of `read_page`; the page's other tokens become zero."""
        if self._memory is not None:
            self._memory.reached(page)
        target = self._bytes[:, :, page, :tokens]
        target[...] = np.frombuffer(payload, np.uint8).reshape(target.shape)
        self._bytes[:, :, page, tokens:] = 0
