"""What no shape describes is found out by writing; and what loses or mixes elements is refused."""

import pytest
import torch

from runtime.errors import ModelError
from runtime.kv.layouts import Extent
from runtime.kv.memory import PackedLayer
from runtime.kv.packed import Store, probe_packing
from tests.kv.packings import PACKINGS, packed_store

EXTENT = Extent(blocks=5, block_tokens=8, heads=3, head_dim=32)
ELEMENTS = 2 * 8 * 3 * 32


def memory_of(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(5, ELEMENTS, dtype=dtype)


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_the_engine_writes_is_read_and_what_is_written_the_engine_finds(name: str, dtype: torch.dtype) -> None:
    memory = memory_of(dtype)
    store = packed_store(name, memory, EXTENT)
    layer = PackedLayer(probe_packing(memory, store, EXTENT), memory)
    assert not memory.any()
    source = torch.Generator().manual_seed(0)
    content = torch.randn(2, 11, 3, 32, generator=source).to(dtype)
    slots = torch.tensor([3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 39])
    store(slots, content[0], content[1])
    assert torch.equal(layer.gather(slots // 8, slots % 8), content)
    written = memory.clone()
    memory.zero_()
    layer.scatter(slots // 8, slots % 8, content)
    assert torch.equal(memory, written)


def losing(store: Store) -> Store:
    return lambda slots, keys, values: store(slots, keys, torch.zeros_like(values))


def mixing(store: Store) -> Store:
    """The last element of every key is where the first is."""

    def mixed(slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        keys = keys.clone()
        keys[..., -1] = keys[..., 0]
        store(slots, keys, values)

    return mixed


def rounding(store: Store) -> Store:
    return lambda slots, keys, values: store(slots, (keys / 4).round() * 4, values)


def test_a_cache_that_keeps_not_every_element_once_is_refused() -> None:
    memory = memory_of()
    store = packed_store("matrix", memory, EXTENT)
    for broken in (losing(store), mixing(store), rounding(store)):
        with pytest.raises(ModelError, match="exactly once"):
            probe_packing(memory, broken, EXTENT)


def test_a_cache_whose_blocks_are_not_apart_is_refused() -> None:
    memory = memory_of()
    store = packed_store("matrix", memory, EXTENT)

    def spilling(slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        store(slots, keys, values)
        memory[0, 0] = 1

    with pytest.raises(ModelError, match="changes another"):
        probe_packing(memory, spilling, EXTENT)
