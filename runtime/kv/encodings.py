"""Payloads in another form than the model computes them: one byte an element, with a scale for each head, or of another
data type. Lossy, and so never by default.

FRAME.md documents the bytes. With `FP8` values stay within 240 times their scale, so that the same byte means the same
on chips whose e4m3 ends at 240 and on those where it ends at 448; `FP8_448` is for pairs of the latter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding, Frame, Part
from runtime.errors import DataCorrupt
from runtime.kv.frames import SCALE_BYTES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Form:
    """`limit` is what the largest element of a head becomes; `round` makes bytes of what is within it."""

    limit: float
    round: Callable[[torch.Tensor], torch.Tensor]
    dtype: torch.dtype


_FORMS = {
    Encoding.FP8: _Form(240.0, lambda scaled: scaled, torch.float8_e4m3fn),
    Encoding.FP8_448: _Form(448.0, lambda scaled: scaled, torch.float8_e4m3fn),
    Encoding.INT8: _Form(127.0, torch.round, torch.int8),
}


def compress(frame: Frame, spec: ModelSpec, encoding: Encoding) -> Frame:
    """A plain frame of one group as it travels; one with an infinity or a NaN in it stays plain."""
    form = _FORMS.get(encoding)
    if form is None:
        return frame
    shape = _shape(frame, spec)
    values = torch.frombuffer(bytearray(frame.payload), dtype=_dtype(frame, spec)).float().view(shape)
    largest = values.abs().amax(dim=(1, 3))
    scales = largest / form.limit
    if not math.isfinite(float(scales.sum())):
        return frame
    scales[scales == 0] = 1.0
    small = form.round(values / scales[:, None, :, None]).clamp_(-form.limit, form.limit).to(form.dtype)
    payload = scales.numpy().tobytes() + small.view(torch.uint8).numpy().tobytes()
    return replace(frame, payload=payload, encoding=encoding)


def plain(frame: Frame, spec: ModelSpec) -> Frame:
    """The plain frame of the model's data type that a frame in any form stands for.

    Raises `DataCorrupt` for a scale that is none, and for an element that this data type does not reach.
    """
    if frame.encoding is Encoding.PLAIN:
        return converted(frame, spec, spec.dtype)
    form, shape = _FORMS[frame.encoding], _shape(frame, spec)
    rows, _, heads, _ = shape
    content = np.frombuffer(frame.payload, np.uint8).copy()
    end = rows * heads * SCALE_BYTES
    scales = torch.from_numpy(content[:end].view("<f4")).view(rows, 1, heads, 1)
    if not bool(torch.isfinite(scales).all()):
        raise DataCorrupt("frame: a scale is not finite", field="scale")
    values = torch.from_numpy(content[end:]).view(form.dtype).float().view(shape) * scales
    return replace(_of(frame, values, spec, spec.dtype), encoding=Encoding.PLAIN)


def converted(frame: Frame, spec: ModelSpec, dtype: str) -> Frame:
    """A plain frame with its elements rounded to another data type, to the nearest.

    Raises `DataCorrupt` when a finite element is beyond what that reaches.
    """
    if (frame.dtype or spec.dtype) == dtype:
        return frame
    values = torch.frombuffer(bytearray(frame.payload), dtype=_dtype(frame, spec))
    return _of(frame, values, spec, dtype)


def _of(frame: Frame, values: torch.Tensor, spec: ModelSpec, dtype: str) -> Frame:
    rounded = values.to(DTYPES[dtype])
    if bool((torch.isfinite(values) & ~torch.isfinite(rounded)).any()):
        raise DataCorrupt(f"frame: an element is beyond {dtype}", field="dtype")
    payload = rounded.view(torch.uint8).numpy().tobytes()
    return replace(frame, payload=payload, dtype=None if dtype == spec.dtype else dtype)


def _dtype(frame: Frame, spec: ModelSpec) -> torch.dtype:
    return DTYPES[frame.dtype or spec.dtype]


def _shape(frame: Frame, spec: ModelSpec) -> tuple[int, int, int, int]:
    """`[layer and side, token, head, element]` of a payload."""
    part = frame.part or Part(0, 0, spec.page_groups[0].heads)
    group = spec.page_groups[part.group]
    return group.rows, frame.valid_tokens, part.heads, group.head_dim
