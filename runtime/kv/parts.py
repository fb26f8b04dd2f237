"""Pages in parts: cut by groups of layers and ranges of heads, and joined again. Plain payloads; moves bytes only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.domain.spec import DTYPE_BYTES, LayerGroup, ModelSpec
from runtime.domain.steps import Encoding, Frame, Part
from runtime.errors import DataCorrupt
from runtime.ids import PageId

_Bytes = npt.NDArray[np.uint8]


def split_groups(frame: Frame, spec: ModelSpec) -> Iterator[Frame]:
    """A whole page as a frame of each group of layers; as it is where there is one group, or it is a part already."""
    if len(spec.page_groups) == 1 or frame.part is not None:
        yield frame
        return
    payload, first = memoryview(frame.payload), 0
    for number, group in enumerate(spec.page_groups):
        end = first + group.elements * frame.valid_tokens * DTYPE_BYTES[spec.dtype]
        yield replace(frame, payload=payload[first:end], part=Part(number, 0, group.heads))
        first = end


def cut_heads(frame: Frame, spec: ModelSpec, heads: range) -> Frame:
    """Of a frame of a whole group (or a whole page of one group), these heads."""
    part = frame.part or Part(0, 0, spec.page_groups[0].heads)
    group = spec.page_groups[part.group]
    by_head = _by_head(frame.payload, group, part.heads, frame.valid_tokens, spec.dtype)
    payload = by_head[:, heads.start : heads.stop].tobytes()
    return replace(frame, payload=payload, part=Part(part.group, heads.start, len(heads)))


def _by_head(payload: bytes | memoryview, group: LayerGroup, heads: int, tokens: int, dtype: str) -> _Bytes:
    """`[layer * side * token, head, byte]`, where it lies."""
    shape = (group.rows * tokens, heads, group.head_dim * DTYPE_BYTES[dtype])
    return np.frombuffer(payload, np.uint8).reshape(shape)


@dataclass(slots=True, eq=False)
class _Joining:
    """A page that is not whole yet: its payload, and of each group which heads are in it."""

    payload: _Bytes
    here: list[npt.NDArray[np.bool_]]


class Joined:
    """Pages of one transfer that come in parts. No more than `most` are open at once: so many memory is taken for, and
    only once a part of one was verified."""

    def __init__(self, spec: ModelSpec, most: int) -> None:
        self._spec = spec
        self._most = most
        self._open: dict[tuple[PageId, int, int], _Joining] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, frame: Frame) -> Frame | None:
        """The whole page once this plain frame completes it. Heads that are here already are not looked at again.

        Raises `DataCorrupt` when it would begin one page too many.
        """
        part = frame.part
        if part is None:
            return frame
        assert frame.encoding is Encoding.PLAIN
        assert frame.dtype is None
        key = (frame.page, frame.index, frame.valid_tokens)
        joining = self._open.get(key) or self._begin(key)
        heads = slice(part.first_head, part.first_head + part.heads)
        missing = ~joining.here[part.group][heads]
        group = self._spec.page_groups[part.group]
        target = self._target(joining, part.group, frame.valid_tokens)
        source = _by_head(frame.payload, group, part.heads, frame.valid_tokens, self._spec.dtype)
        if missing.all():
            target[:, heads] = source
        else:
            target[:, heads][:, missing] = source[:, missing]
        joining.here[part.group][heads] = True
        if not all(here.all() for here in joining.here):
            return None
        del self._open[key]
        return replace(frame, payload=joining.payload.data, part=None)

    def _begin(self, key: tuple[PageId, int, int]) -> _Joining:
        if len(self._open) >= self._most:
            raise DataCorrupt(f"frame: parts of more than {self._most} pages at once", field="page")
        tokens = key[2]
        here = [np.zeros(group.heads, np.bool_) for group in self._spec.page_groups]
        joining = self._open[key] = _Joining(np.empty(self._spec.token_bytes * tokens, np.uint8), here)
        return joining

    def _target(self, joining: _Joining, number: int, tokens: int) -> _Bytes:
        """Where the heads of a group go."""
        spec = self._spec
        size = DTYPE_BYTES[spec.dtype] * tokens
        first = sum(group.elements for group in spec.page_groups[:number]) * size
        group = spec.page_groups[number]
        own = joining.payload[first : first + group.elements * size]
        return own.reshape(group.rows * tokens, group.heads, -1)
