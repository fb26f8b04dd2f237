"""The golden frames beside FRAME.md: what others implement the contract against never changes."""

from pathlib import Path

import pytest
import torch

import batonmesh.v1
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.ids import PageId
from runtime.kv.encodings import compress, restore
from runtime.kv.frames import FrameCodec

GOLDEN = Path(batonmesh.v1.__file__).parent / "golden"
MODEL = ModelSpec(
    name="golden",
    layers=1,
    kv_heads=2,
    head_dim=4,
    dtype="bfloat16",
    vocab=1,
    max_tokens=32,
    page_tokens=4,
    kv_fingerprint="000102030405060708090a0b0c0d0e0f",
    serving_fingerprint="00" * 16,
)
# [layer, k|v, token, head, element]: 1, 2, 3 ... 48, the values negative, a page of 3 of 4 tokens.
ELEMENTS = torch.arange(1.0, 49).view(1, 2, 3, 2, 4) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
FRAME = Frame(PageId(bytes(range(16, 32))), 7, 3, ELEMENTS.bfloat16().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("encoding", Encoding)
def test_a_golden_frame_is_what_is_written_and_is_read(encoding: Encoding) -> None:
    golden = bytes.fromhex((GOLDEN / f"{encoding.value}.hex").read_text())
    codec = FrameCodec(MODEL, encoding)
    assert codec.encode(compress(FRAME, MODEL, encoding)).hex() == golden.hex()
    read = restore(codec.decode(golden), MODEL)
    assert (read.page, read.index, read.valid_tokens) == (FRAME.page, 7, 3)
    found = torch.frombuffer(bytearray(read.payload), dtype=torch.bfloat16).view(ELEMENTS.shape).float()
    allowed = {Encoding.PLAIN: 0.0, Encoding.FP8: 1 / 16, Encoding.INT8: 1 / 8}[encoding]
    assert bool(((found - ELEMENTS).abs() <= ELEMENTS.abs() * allowed + allowed).all())
