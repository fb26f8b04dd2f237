"""Smaller payloads: how far off an element may be, and that nothing else takes them for what they are not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.encodings import compress, converted, plain
from runtime.kv.frames import FrameCodec
from tests.kv.test_frames import SPEC
from tests.scale import scaled

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROUNDING = {"float32": 2**-23, "bfloat16": 2**-8, "float16": 2**-10}
LOSSY = (Encoding.FP8, Encoding.INT8, Encoding.FP8_448)
_SMALLEST = {Encoding.FP8: 245_760, Encoding.FP8_448: 458_752}

SPECS = st.builds(
    lambda layers, heads, dim, dtype: replace(SPEC, layers=layers, kv_heads=heads, head_dim=dim, dtype=dtype),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from((4, 16, 64)),
    st.sampled_from(sorted(DTYPE_BYTES)),
)


def page(spec: ModelSpec, tokens: int, seed: int) -> tuple[Frame, torch.Tensor]:
    """A frame, and its elements `[layer, k|v, token, head, element]` of very different sizes from head to head."""
    source = torch.Generator().manual_seed(seed)
    shape = (spec.layers, 2, tokens, spec.kv_heads, spec.head_dim)
    sizes = torch.randn(1, 2, 1, spec.kv_heads, 1, generator=source).exp()
    values = (torch.randn(shape, generator=source) * sizes).to(_DTYPES[spec.dtype])
    return Frame(PageId(bytes(16)), 0, tokens, values.view(torch.uint8).numpy().tobytes()), values


def elements(frame: Frame, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(frame.payload), dtype=like.dtype).view(like.shape)


@settings(max_examples=scaled(60, 1000), deadline=None)
@given(spec=SPECS, tokens=st.integers(1, SPEC.page_tokens), seed=st.integers(0, 2**31), encoding=st.sampled_from(LOSSY))
def test_no_element_is_further_off_than_the_contract_says(
    spec: ModelSpec, tokens: int, seed: int, encoding: Encoding
) -> None:
    frame, values = page(spec, tokens, seed)
    codec = FrameCodec(spec, encoding)
    small = codec.decode(codec.encode(compress(frame, spec, encoding)))
    assert small.encoding is encoding
    assert len(small.payload) == spec.layers * 2 * spec.kv_heads * (4 + tokens * spec.head_dim)
    exact, found = values.double(), elements(plain(small, spec), values).double()
    largest = exact.abs().amax(dim=(2, 4), keepdim=True)
    if encoding is Encoding.INT8:
        bound = largest / 254
    else:
        bound = torch.maximum(exact.abs() / 16, largest / _SMALLEST[encoding])
    rounding = exact.abs() * 1.1 * _ROUNDING[spec.dtype] + 2**-24
    assert bool(((found - exact).abs() <= bound * 1.001 + rounding).all())


@pytest.mark.parametrize(("encoding", "limit"), [(Encoding.FP8, 240.0), (Encoding.FP8_448, 448.0)])
def test_the_largest_element_of_a_head_becomes_the_limit_and_none_goes_beyond(encoding: Encoding, limit: float) -> None:
    frame, values = page(SPEC, 8, 1)
    small = compress(frame, SPEC, encoding)
    scales = SPEC.layers * 2 * SPEC.kv_heads * 4
    stored = torch.frombuffer(bytearray(small.payload)[scales:], dtype=torch.float8_e4m3fn).float().view(values.shape)
    assert bool((stored.abs().amax(dim=(2, 4)) == limit).all())


@pytest.mark.parametrize("encoding", LOSSY)
def test_heads_have_scales_of_their_own(encoding: Encoding) -> None:
    frame, values = page(SPEC, 8, 1)
    loud = values.clone()
    loud[:, :, :, 0] *= 1000
    one = compress(frame, SPEC, encoding)
    other = compress(replace(frame, payload=loud.view(torch.uint8).numpy().tobytes()), SPEC, encoding)
    calm = slice(1, None)
    assert elements(plain(one, SPEC), values)[:, :, :, calm].equal(elements(plain(other, SPEC), values)[:, :, :, calm])


@pytest.mark.parametrize("encoding", LOSSY)
def test_zeros_stay_zeros_and_what_is_not_finite_stays_plain(encoding: Encoding) -> None:
    empty = Frame(PageId(bytes(16)), 0, 8, bytes(SPEC.page_bytes))
    assert plain(compress(empty, SPEC, encoding), SPEC) == empty
    frame, values = page(SPEC, 8, 1)
    values[0, 0, 0, 0, 0] = torch.nan
    broken = replace(frame, payload=values.view(torch.uint8).numpy().tobytes())
    assert compress(broken, SPEC, encoding) is broken


def test_plain_frames_are_not_touched() -> None:
    frame, _ = page(SPEC, 8, 1)
    assert compress(frame, SPEC, Encoding.PLAIN) is frame
    assert plain(frame, SPEC) is frame


def test_a_lossy_frame_is_refused_where_it_was_not_asked_for_and_a_plain_one_never() -> None:
    frame, _ = page(SPEC, 8, 1)
    fp8 = FrameCodec(SPEC, Encoding.FP8)
    data = fp8.encode(compress(frame, SPEC, Encoding.FP8))
    for other in (FrameCodec(SPEC), FrameCodec(SPEC, Encoding.INT8)):
        with pytest.raises(DataCorrupt, match="encoding is 1"):
            other.decode(data)
    wide = FrameCodec(SPEC, Encoding.FP8_448)
    assert wide.decode(data).encoding is Encoding.FP8, "what stays within 240 stays within 448"
    with pytest.raises(DataCorrupt, match="encoding is 3"):
        fp8.decode(wide.encode(compress(frame, SPEC, Encoding.FP8_448)))
    assert fp8.decode(FrameCodec(SPEC).encode(frame)) == frame


def test_a_scale_that_is_not_finite_is_refused() -> None:
    frame, _ = page(SPEC, 8, 1)
    small = compress(frame, SPEC, Encoding.INT8)
    scale = torch.tensor([torch.inf]).numpy().tobytes()
    with pytest.raises(DataCorrupt, match="scale"):
        plain(replace(small, payload=scale + bytes(small.payload)[4:]), SPEC)


@settings(max_examples=scaled(60, 1000), deadline=None)
@given(
    spec=SPECS,
    tokens=st.integers(1, SPEC.page_tokens),
    seed=st.integers(0, 2**31),
    other=st.sampled_from(sorted(DTYPE_BYTES)),
)
def test_values_of_another_data_type_are_rounded_to_the_nearest_and_come_back_where_nothing_was_lost(
    spec: ModelSpec, tokens: int, seed: int, other: str
) -> None:
    frame, values = page(spec, tokens, seed)
    there = replace(spec, dtype=other)
    travelled = FrameCodec(there, dtypes=(spec.dtype,))
    if DTYPE_BYTES[spec.dtype] > DTYPE_BYTES[other]:
        sent = converted(frame, spec, other)
        assert len(sent.payload) < len(frame.payload)
    else:
        sent = frame
    found = plain(travelled.decode(FrameCodec(spec).encode(sent)), there)
    assert found.dtype is None
    rounded = values.to(_DTYPES[other])
    assert elements(found, rounded).equal(rounded)
    if other == "float32":
        back = converted(found, there, spec.dtype)
        assert bytes(back.payload) == frame.payload


def test_what_another_data_type_does_not_reach_is_refused_and_no_infinity() -> None:
    spec = replace(SPEC, dtype="bfloat16")
    frame, values = page(spec, 8, 1)
    values[1, 1, 0, 0, 0] = 70_000
    with pytest.raises(DataCorrupt, match="beyond float16") as refused:
        converted(replace(frame, payload=values.view(torch.uint8).numpy().tobytes()), spec, "float16")
    assert refused.value.field == "dtype"


def test_a_data_type_that_was_not_named_is_refused_and_so_is_a_wider_one() -> None:
    frame, _ = page(replace(SPEC, dtype="bfloat16"), 8, 1)
    data = FrameCodec(replace(SPEC, dtype="bfloat16")).encode(frame)
    assert FrameCodec(SPEC, dtypes=("bfloat16",)).decode(data).dtype == "bfloat16"
    with pytest.raises(DataCorrupt, match="dtype is 2"):
        FrameCodec(SPEC).decode(data)
    wide, _ = page(SPEC, 8, 1)
    with pytest.raises(DataCorrupt, match="dtype is 1"):
        FrameCodec(replace(SPEC, dtype="bfloat16"), dtypes=("float32",)).decode(FrameCodec(SPEC).encode(wide))
