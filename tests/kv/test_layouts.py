"""Any layout to any other, by way of frames: bit for bit where nothing is rounded, of whatever ranks and blocks."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.spec import DTYPE_BYTES, Kind, ModelSpec
from runtime.domain.steps import Encoding, Frame, Part
from runtime.errors import InvalidArgument
from runtime.ids import PageId
from runtime.kv.encodings import DTYPES, compress, converted, plain
from runtime.kv.frames import FrameCodec
from runtime.kv.layouts import LAYOUTS, Extent, layout_of
from runtime.kv.memory import LaidLayer, LayerMemory, PackedLayer, PagedMemory
from runtime.kv.packed import probe_packing
from runtime.kv.parts import Joined, cut_heads
from runtime.model.share import HeadSplit
from tests.kv.packings import PACKINGS, packed_store
from tests.kv.test_frames import SPEC
from tests.scale import scaled

KV_LAYOUTS = [name for name, layout in LAYOUTS.items() if layout.kind is Kind.KV]
SPARE = 3


@dataclass(frozen=True)
class Engine:
    """How one keeps KV: `layout` is the name of one, or of how its kernels pack it."""

    layout: str
    ranks: int
    block_tokens: int
    dtype: str


ENGINES = st.builds(
    Engine,
    st.sampled_from([*KV_LAYOUTS, *PACKINGS]),
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from((2, 4, 6, 8, 16, 64)),
    st.sampled_from(sorted(DTYPE_BYTES)),
)


class Ranks:
    """The memory of all ranks of an engine, for one sequence, whose blocks lie anywhere."""

    def __init__(self, engine: Engine, spec: ModelSpec, tokens: int, seed: int) -> None:
        self.spec = replace(spec, dtype=engine.dtype)
        self.split = HeadSplit(spec.kv_heads, engine.ranks)
        blocks = -(-tokens // engine.block_tokens)
        source = torch.Generator().manual_seed(seed)
        self.table = torch.randperm(blocks + SPARE, generator=source)[:blocks]
        extent = Extent(blocks + SPARE, engine.block_tokens, self.split.held, spec.head_dim)
        self.memories = [
            PagedMemory([self._layer(engine, extent) for _ in range(spec.layers)], engine.block_tokens)
            for _ in range(engine.ranks)
        ]

    def _layer(self, engine: Engine, extent: Extent) -> LayerMemory:
        dtype = DTYPES[engine.dtype]
        if engine.layout in PACKINGS:
            memory = torch.zeros(extent.blocks, 2 * extent.block_tokens * extent.heads * extent.head_dim, dtype=dtype)
            return PackedLayer(probe_packing(memory, packed_store(engine.layout, memory, extent), extent), memory)
        layout = LAYOUTS[engine.layout]
        return LaidLayer(layout, layout.allocate(extent, dtype), extent)

    def fill(self, values: torch.Tensor) -> None:
        """With `[layer, side, token, head, element]`, as the ranks would have computed it."""
        for rank, memory in enumerate(self.memories):
            memory.write(self.table, 0, values[:, :, :, self.split.of(rank)].to(DTYPES[self.spec.dtype]))

    def export(self, first: int, tokens: int, index: int) -> list[Frame]:
        """A page, by those ranks that hold every head once between them."""
        frames = []
        for rank in self.split.tellers:
            payload = self.memories[rank].read(self.table, first, tokens).view(torch.uint8).numpy().tobytes()
            part = Part(0, self.split.of(rank).start, self.split.held)
            frames.append(Frame(PageId(index.to_bytes(16)), index, tokens, payload, part=part))
        return frames

    def land(self, page: Frame, first: int) -> None:
        for rank, memory in enumerate(self.memories):
            held = cut_heads(page, self.spec, range(*self.split.of(rank).indices(self.spec.kv_heads)))
            content = torch.frombuffer(bytearray(held.payload), dtype=DTYPES[self.spec.dtype])
            shape = (self.spec.layers, 2, page.valid_tokens, self.split.held, self.spec.head_dim)
            memory.write(self.table, first, content.view(shape))

    def content(self, rank: int, tokens: int) -> torch.Tensor:
        return self.memories[rank].read(self.table, 0, tokens)


def hand_over(source: Ranks, target: Ranks, tokens: int, encoding: Encoding = Encoding.PLAIN) -> None:
    """Page by page, each head range in a frame of its own, through the bytes that travel."""
    size, there = source.spec.page_tokens, target.spec
    codec, theirs = FrameCodec(source.spec), FrameCodec(there, encoding, [source.spec.dtype])
    narrow = DTYPE_BYTES[source.spec.dtype] > DTYPE_BYTES[there.dtype]
    for index, first in enumerate(range(0, tokens, size)):
        joined = Joined(there, 1)
        for frame in source.export(first, min(size, tokens - first), index):
            sent = converted(frame, source.spec, there.dtype) if narrow else frame
            data = codec.encode(compress(sent, source.spec, encoding))
            page = joined.add(plain(theirs.decode(data), there))
        assert page is not None
        target.land(page, first)


def values_of(spec: ModelSpec, tokens: int, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(spec.layers, 2, tokens, spec.kv_heads, spec.head_dim, generator=source)


@settings(max_examples=scaled(100, 3000), deadline=None)
@given(
    here=ENGINES,
    there=ENGINES,
    heads=st.sampled_from((1, 2, 4, 8)),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_what_one_engine_computed_is_what_the_other_has(
    here: Engine, there: Engine, heads: int, tokens: int, seed: int
) -> None:
    spec = replace(SPEC, kv_heads=heads)
    values = values_of(spec, tokens, seed)
    source, target = Ranks(here, spec, tokens, seed), Ranks(there, spec, tokens, seed + 1)
    source.fill(values)
    hand_over(source, target, tokens)
    wanted = values.to(DTYPES[here.dtype]).to(DTYPES[there.dtype])
    for rank in range(there.ranks):
        assert torch.equal(target.content(rank, tokens), wanted[:, :, :, target.split.of(rank)])


@settings(max_examples=scaled(40, 1000), deadline=None)
@given(
    here=ENGINES,
    there=ENGINES,
    tokens=st.integers(1, 40),
    seed=st.integers(0, 999),
    encoding=st.sampled_from((Encoding.FP8, Encoding.INT8, Encoding.FP8_448)),
)
def test_what_travelled_smaller_is_off_by_no_more_than_the_contract_says(
    here: Engine, there: Engine, tokens: int, seed: int, encoding: Encoding
) -> None:
    spec = replace(SPEC, kv_heads=4)
    values = values_of(spec, tokens, seed)
    source, target = Ranks(here, spec, tokens, seed), Ranks(there, spec, tokens, seed + 1)
    source.fill(values)
    hand_over(source, target, tokens, encoding)
    exact = values.to(DTYPES[here.dtype]).float()
    largest = exact.abs().max()
    bound = largest / 254 if encoding is Encoding.INT8 else torch.maximum(exact.abs() / 16, largest / 245_760)
    rounding = exact.abs() / 64 + 2**-24  # to bfloat16, once on the way and once there
    for rank in range(there.ranks):
        held = (slice(None),) * 3 + (target.split.of(rank),)
        found = target.content(rank, tokens).float()
        assert bool(((found - exact[held]).abs() <= (bound + rounding)[held]).all())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_as_the_stack_has_it(name: str) -> None:
    """Where the element of block 2, token 3, head 1, element 2 is, said by index and not by axes."""
    extent = Extent(blocks=5, block_tokens=4, heads=1 if name == "latent" else 2, head_dim=3)
    tensors = LAYOUTS[name].allocate(extent, torch.float32)
    sides = LAYOUTS[name].views(tensors, extent)
    for number, side in enumerate(sides):
        side[2, 3, -1, 2] = number + 1
    found = {
        "baton": lambda: [tensors[0][side, 2, 3, 1, 2] for side in (0, 1)],
        "slots": lambda: [tensor[2 * 4 + 3, 1, 2] for tensor in tensors],
        "nxdi": lambda: [tensor[2, 1, 3, 2] for tensor in tensors],
        "nxdi_transposed": lambda: [tensors[0][2, 1, 2, 3], tensors[1][2, 1, 3, 2]],
        "nxdi_prefix": lambda: [tensor[2, 3, 1, 2] for tensor in tensors],
        "nxdi_chunked": lambda: [tensor[2, 1, 3, 2] for tensor in tensors],
        "vllm_neuron": lambda: [tensors[0][side, 2, 1, 3, 2] for side in (0, 1)],
        "vllm_cuda": lambda: [tensors[0][2, 1, 3, 2], tensors[0][2, 1, 3, 3 + 2]],
        "latent": lambda: [tensors[0][2, 3, 2]],
    }[name]()
    assert [float(each) for each in found] == [number + 1.0 for number in range(len(sides))]
    assert sum(int((tensor != 0).sum()) for tensor in tensors) == len(sides)


def test_latents_leave_and_enter_as_one_vector_a_token() -> None:
    layout, extent = layout_of("latent", Kind.LATENT), Extent(4, 4, 1, 6)
    (tensor,) = layout.allocate(extent, torch.float32)
    memory, table = PagedMemory([LaidLayer(layout, [tensor], extent)], 4), torch.tensor([2, 0])
    content = torch.arange(7.0 * 6).view(1, 1, 7, 1, 6)
    memory.write(table, 0, content)
    assert torch.equal(torch.cat((tensor[2], tensor[0, :3])), content.view(7, 6))
    assert torch.equal(memory.read(table, 0, 7), content)
    assert not tensor[[1, 3]].any()


def test_a_write_touches_its_tokens_only() -> None:
    spec = replace(SPEC, kv_heads=2)
    for name in (*KV_LAYOUTS, *PACKINGS):
        ranks = Ranks(Engine(name, 1, 4, "float32"), spec, 16, 0)
        before = values_of(spec, 16, 1)
        ranks.fill(before)
        ranks.memories[0].write(ranks.table, 5, torch.zeros(spec.layers, 2, 6, 2, spec.head_dim))
        found = ranks.content(0, 16)
        assert not found[:, :, 5:11].any()
        kept = [*range(5), *range(11, 16)]
        assert torch.equal(found[:, :, kept], before[:, :, kept])


def test_a_layout_that_is_not_known_or_holds_something_else_is_refused_by_name() -> None:
    for name, kind in (("paged-by-hand", Kind.KV), ("latent", Kind.KV), ("vllm_cuda", Kind.LATENT)):
        with pytest.raises(InvalidArgument, match=name):
            layout_of(name, kind)


def test_tensors_of_another_layout_are_refused_with_both_shapes() -> None:
    extent = Extent(5, 4, 2, 3)
    tensors = LAYOUTS["nxdi"].allocate(extent, torch.float32)
    with pytest.raises(InvalidArgument, match=r"vllm_cuda.*\(5, 2, 4, 3\).*\(5, 2, 4, 6\)"):
        LAYOUTS["vllm_cuda"].views(tensors, extent)
