"""Payloads made smaller for the way: one byte an element, with a scale for each head. Lossy, and so never by default.

FRAME.md documents the bytes. Values stay within 240 times their scale, so that the same byte means the same on chips
whose e4m3 ends at 240 and on those where it ends at 448.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.errors import DataCorrupt
from runtime.kv.frames import SCALE_BYTES

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Form:
    """`limit` is what the largest element of a head becomes; `round` makes bytes of what is within it."""

    limit: float
    round: Callable[[torch.Tensor], torch.Tensor]
    dtype: torch.dtype


_FORMS = {
    Encoding.FP8: _Form(240.0, lambda scaled: scaled, torch.float8_e4m3fn),
    Encoding.INT8: _Form(127.0, torch.round, torch.int8),
}


def compress(frame: Frame, spec: ModelSpec, encoding: Encoding) -> Frame:
    """The frame as it travels; one with an infinity or a NaN in it stays plain."""
    form = _FORMS.get(encoding)
    if form is None:
        return frame
    values = torch.frombuffer(bytearray(frame.payload), dtype=_DTYPES[spec.dtype]).float()
    values = values.view(spec.layers, 2, frame.valid_tokens, spec.kv_heads, spec.head_dim)
    largest = values.abs().amax(dim=(2, 4))
    scales = largest / form.limit
    if not math.isfinite(float(scales.sum())):
        return frame
    scales[scales == 0] = 1.0
    small = form.round(values / scales[:, :, None, :, None]).clamp_(-form.limit, form.limit).to(form.dtype)
    payload = scales.numpy().tobytes() + small.view(torch.uint8).numpy().tobytes()
    return replace(frame, payload=payload, encoding=encoding)


def restore(frame: Frame, spec: ModelSpec) -> Frame:
    """The plain frame that a compressed one stands for. Raises `DataCorrupt` for a scale that is none."""
    form = _FORMS.get(frame.encoding)
    if form is None:
        return frame
    heads = spec.layers * 2 * spec.kv_heads
    content = np.frombuffer(frame.payload, np.uint8).copy()
    scales = torch.from_numpy(content[: heads * SCALE_BYTES].view("<f4")).view(spec.layers, 2, 1, spec.kv_heads, 1)
    if not bool(torch.isfinite(scales).all()):
        raise DataCorrupt("frame: a scale is not finite", field="scale")
    small = torch.from_numpy(content[heads * SCALE_BYTES :]).view(form.dtype)
    values = small.float().view(spec.layers, 2, frame.valid_tokens, spec.kv_heads, spec.head_dim) * scales
    payload = values.to(_DTYPES[spec.dtype]).view(torch.uint8).numpy().tobytes()
    return replace(frame, payload=payload, encoding=Encoding.PLAIN)
