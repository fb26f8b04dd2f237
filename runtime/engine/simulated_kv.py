"""What the simulated engine's values look like as pages: a few bytes, or as many as a real model's would have."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.domain.spec import DTYPE_BYTES

_WORD = 4


@dataclass(frozen=True, slots=True)
class KvShape:
    """Of a token's KV: `[2, kv_heads, head_dim]` elements in each layer."""

    layers: int = 1
    kv_heads: int = 1
    head_dim: int = 1
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's keys in one layer, and as many of its values."""
        return self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]


class Payloads(Protocol):
    """Values of tokens, 64 bits each, to the payload of a page `[layer, k|v, token, kv_head, head_dim]` and back."""

    def of(self, values: Sequence[int], layers: int) -> bytes:
        """Of as many layers; all look alike."""

    def values(self, payload: bytes | memoryview, tokens: int) -> list[int]:
        """The inverse for a whole page. A payload whose layers do not agree gives other values."""


class Narrow:
    """8 bytes a token: the low half is its key, the high half its value."""

    def of(self, values: Sequence[int], layers: int) -> bytes:
        low = array("I", [value & 0xFFFFFFFF for value in values])
        high = array("I", [value >> 32 for value in values])
        return low.tobytes() + high.tobytes()

    def values(self, payload: bytes | memoryview, tokens: int) -> list[int]:
        words = array("I")
        words.frombytes(payload)
        return [words[place] | (words[tokens + place] << 32) for place in range(tokens)]


class Wide:
    """The same halves, again and again in every row of every layer."""

    def __init__(self, shape: KvShape) -> None:
        assert shape.row_bytes % _WORD == 0, f"{shape} has rows that are no whole words"
        self._layers = shape.layers
        self._words = shape.row_bytes // _WORD

    def of(self, values: Sequence[int], layers: int) -> bytes:
        own = np.array(values, "<u8")
        halves = np.stack((own & 0xFFFFFFFF, own >> 32)).astype("<u4")
        return np.repeat(halves, self._words).tobytes() * layers

    def values(self, payload: bytes | memoryview, tokens: int) -> list[int]:
        words = np.frombuffer(payload, "<u4").reshape(self._layers, 2, tokens, self._words)
        ends = words[..., [0, -1]].astype("<u8")
        agree = (ends == ends[0, :, :, :1]).all(axis=(0, 3))
        low, high = np.where(agree, ends[0, :, :, 0], ~ends[0, :, :, 0] & 0xFFFFFFFF)
        found: list[int] = (low | (high << np.uint64(32))).tolist()
        return found


def payloads_of(shape: KvShape) -> Payloads:
    return Narrow() if shape == KvShape() else Wide(shape)
