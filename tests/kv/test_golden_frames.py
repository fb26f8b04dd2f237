"""The golden frames beside FRAME.md: what others implement the contract against never changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import batonmesh.v1
from runtime.domain.spec import Kind, LayerGroup, ModelSpec
from runtime.domain.steps import Encoding, Frame, Part
from runtime.ids import PageId
from runtime.kv.encodings import DTYPES, compress, plain
from runtime.kv.frames import FrameCodec
from runtime.kv.parts import Joined, cut_heads, split_groups

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
GROUPS = replace(
    MODEL,
    layers=4,
    groups=(
        LayerGroup((0, 2), 1, 4),
        LayerGroup((1,), 2, 2, window=4),
        LayerGroup((3,), 1, 4, Kind.LATENT),
    ),
)
# [layer, k|v, token, head, element]: 1, 2, 3 ... 48, the values negative, a page of 3 of 4 tokens.
ELEMENTS = torch.arange(1.0, 49).view(1, 2, 3, 2, 4) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
ENCODINGS = (Encoding.PLAIN, Encoding.FP8, Encoding.INT8, Encoding.FP8_448)


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


def page(elements: torch.Tensor, dtype: str = "bfloat16") -> Frame:
    payload = elements.to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
    return Frame(PageId(bytes(range(16, 32))), 7, 3, payload)


FRAME = page(ELEMENTS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_golden_frame_is_what_is_written_and_is_read(encoding: Encoding) -> None:
    data = golden(encoding.value)
    codec = FrameCodec(MODEL, encoding)
    assert codec.encode(compress(FRAME, MODEL, encoding)).hex() == data.hex()
    read = plain(codec.decode(data), MODEL)
    assert (read.page, read.index, read.valid_tokens) == (FRAME.page, 7, 3)
    found = torch.frombuffer(bytearray(read.payload), dtype=torch.bfloat16).view(ELEMENTS.shape).float()
    allowed = {Encoding.PLAIN: 0.0, Encoding.INT8: 1 / 8}.get(encoding, 1 / 16)
    assert bool(((found - ELEMENTS).abs() <= ELEMENTS.abs() * allowed + allowed).all())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_frames_of_other_data_types(dtype: str) -> None:
    codec = FrameCodec(replace(MODEL, dtype=dtype))
    assert codec.encode(page(ELEMENTS, dtype)).hex() == golden(dtype).hex()
    assert codec.decode(golden(dtype)) == page(ELEMENTS, dtype)


def test_frames_of_one_head_each_make_the_page() -> None:
    codec, joined = FrameCodec(MODEL), Joined(MODEL, 1)
    for head in (0, 1):
        part = cut_heads(FRAME, MODEL, range(head, head + 1))
        assert codec.encode(part).hex() == golden(f"heads_{head}").hex()
    assert joined.add(codec.decode(golden("heads_1"))) is None
    assert joined.add(codec.decode(golden("heads_0"))) == FRAME


def test_frames_of_a_model_with_several_groups_make_the_page() -> None:
    codec, joined = FrameCodec(GROUPS), Joined(GROUPS, 1)
    whole = page(torch.arange(1.0, 85))
    parts = list(split_groups(whole, GROUPS))
    assert [part.part for part in parts] == [Part(0, 0, 1), Part(1, 0, 2), Part(2, 0, 1)]
    for number, part in enumerate(parts):
        assert codec.encode(part).hex() == golden(f"group_{number}").hex()
    assert [joined.add(codec.decode(golden(f"group_{number}"))) for number in (2, 0, 1)] == [None, None, whole]
