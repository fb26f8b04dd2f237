"""The frame codec: what comes back, and that nothing else does."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.frames import HEADER_BYTES, FrameCodec

SPEC = ModelSpec(
    name="tiny",
    layers=2,
    kv_heads=3,
    head_dim=4,
    dtype="float32",
    vocab=300,
    max_tokens=256,
    page_tokens=8,
    kv_fingerprint="0f" * 16,
    serving_fingerprint="e1" * 16,
)
CODEC = FrameCodec(SPEC)


def frame(tokens: int = 8, index: int = 5) -> Frame:
    size = tokens * SPEC.token_bytes
    return Frame(PageId(bytes(range(16))), index, tokens, bytes(i * 7 % 251 for i in range(size)))


def rewritten(data: bytes, offset: int, form: str, value: object) -> bytes:
    """`data` with another value at `offset` and a checksum that matches it: as another kind of sender would send."""
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    struct.pack_into("<Q", changed, 64, xxh3_64_intdigest(bytes(changed[:64]) + bytes(changed[HEADER_BYTES:])))
    return bytes(changed)


@given(
    page=st.binary(min_size=16, max_size=16),
    index=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, SPEC.page_tokens),
    data=st.data(),
)
def test_a_frame_comes_back_as_it_was(page: bytes, index: int, tokens: int, data: st.DataObject) -> None:
    size = tokens * SPEC.token_bytes
    original = Frame(PageId(page), index, tokens, data.draw(st.binary(min_size=size, max_size=size)))
    assert CODEC.decode(CODEC.encode(original)) == original


def test_the_bytes_are_those_that_the_document_says() -> None:
    data = CODEC.encode(frame(tokens=2, index=5))
    assert data[:8] == b"BKVF" + bytes([1, 0, 72, 0])
    assert data[8:24] == bytes.fromhex(SPEC.kv_fingerprint)
    assert data[24:40] == bytes(range(16))
    assert struct.unpack_from("<IIHHHHBBHI", data, 40) == (5, 2, 0, 1, 0, 3, 1, 0, 0, 2 * SPEC.token_bytes)
    assert struct.unpack_from("<Q", data, 64)[0] == xxh3_64_intdigest(data[:64] + data[72:])
    assert data[72:] == frame(tokens=2).payload


def test_every_single_flipped_bit_is_found() -> None:
    data = bytearray(CODEC.encode(frame(tokens=3)))
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(DataCorrupt):
                CODEC.decode(bytes(data))
            data[position] ^= 1 << bit
    assert CODEC.decode(bytes(data)) == frame(tokens=3)


def test_a_cut_or_extended_frame_is_found_at_every_length() -> None:
    data = CODEC.encode(frame(tokens=1))
    for length in range(len(data)):
        with pytest.raises(DataCorrupt):
            CODEC.decode(data[:length])
    with pytest.raises(DataCorrupt, match="payload_bytes"):
        CODEC.decode(data + b"\0")


@pytest.mark.parametrize(
    ("field", "offset", "form", "value"),
    [
        ("magic", 0, "<4s", b"HTTP"),
        ("version", 4, "<H", 2),
        ("header_bytes", 6, "<H", 80),
        ("fingerprint", 8, "<16s", bytes(16)),
        ("valid_tokens", 44, "<I", 0),
        ("valid_tokens", 44, "<I", 9),
        ("payload_bytes", 44, "<I", 7),
        ("layer_group", 48, "<H", 1),
        ("layer_groups", 50, "<H", 0),
        ("layer_groups", 50, "<H", 2),
        ("first_head", 52, "<H", 3),
        ("heads", 52, "<H", 1),
        ("heads", 54, "<H", 0),
        ("heads", 54, "<H", 4),
        ("payload_bytes", 54, "<H", 2),
        ("dtype", 56, "<B", 0),
        ("dtype", 56, "<B", 2),
        ("dtype", 56, "<B", 4),
        ("encoding", 57, "<B", 1),
        ("encoding", 57, "<B", 4),
        ("kind", 58, "<B", 1),
        ("reserved", 59, "<B", 1),
        ("payload_bytes", 60, "<I", 2**32 - 1),
    ],
)
def test_a_frame_of_another_kind_is_refused_by_the_name_of_the_field(
    field: str, offset: int, form: str, value: object
) -> None:
    with pytest.raises(DataCorrupt) as refused:
        CODEC.decode(rewritten(CODEC.encode(frame()), offset, form, value))
    assert refused.value.field == field
    assert field in refused.value.message


def test_a_frame_can_be_read_out_of_the_middle_of_a_larger_buffer() -> None:
    data = CODEC.encode(frame())
    assert CODEC.decode(memoryview(b"x" * 11 + data + b"yy")[11:-2]) == frame()
