"""The pool's memory: pages leave and enter in the canonical layout, bit for bit, and show nothing older."""

import ctypes
import mmap
import time

import numpy as np
import pytest
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.host_memory import AHEAD_BYTES
from runtime.engine.kv_tensors import DTYPES, KVTensors
from runtime.engine.paging import PageList

SLACK = 33 << 20  # a huge page at either end of a plane
LAYERS, PAGE_TOKENS, KV_HEADS, HEAD_DIM, PAGES = 3, 4, 2, 8, 5


def make(dtype: str = "float32") -> tuple[ModelSpec, KVTensors]:
    spec = ModelSpec("tiny", LAYERS, KV_HEADS, HEAD_DIM, dtype, 16, 64, PAGE_TOKENS, "", "")
    return spec, KVTensors(spec, PAGES)


def fill(kv: KVTensors, page: int, seed: int) -> torch.Tensor:
    """Write random keys and values into every slot of a page; `[layer, k|v, token, kv_head, head_dim]`."""
    source = torch.Generator().manual_seed(seed)
    content = torch.randn(LAYERS, 2, PAGE_TOKENS, KV_HEADS, HEAD_DIM, generator=source).to(kv.dtype)
    slots = page * PAGE_TOKENS + torch.arange(PAGE_TOKENS)
    for layer in range(LAYERS):
        kv.write(layer, slots, content[layer, 0], content[layer, 1])
    return content


def pages_of(*pages: int) -> PageList:
    return PageList.of(np.array(pages))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, PAGE_TOKENS])
def test_a_page_leaves_in_the_canonical_layout(dtype: str, tokens: int) -> None:
    spec, kv = make(dtype)
    content = fill(kv, 2, seed=0)[:, :, :tokens]
    payload = kv.read_page(2, tokens)
    assert len(payload) == spec.token_bytes * tokens
    found = torch.frombuffer(bytearray(payload), dtype=kv.dtype).view(content.shape)
    assert torch.equal(found, content)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, PAGE_TOKENS])
def test_a_page_enters_another_pool_bit_for_bit(dtype: str, tokens: int) -> None:
    _, one = make(dtype)
    _, other = make(dtype)
    fill(one, 2, seed=0)
    other.write_page(4, memoryview(one.read_page(2, tokens)), tokens)
    assert other.read_page(4, tokens) == one.read_page(2, tokens)
    for layer in range(LAYERS):
        for mine, theirs in zip(one.read(layer, pages_of(2)), other.read(layer, pages_of(4)), strict=True):
            assert torch.equal(mine[:, :tokens], theirs[:, :tokens])


def test_what_a_payload_does_not_cover_becomes_zero() -> None:
    _, kv = make()
    fill(kv, 1, seed=0)
    kv.write_page(1, np.full(LAYERS * 2 * 1 * KV_HEADS * HEAD_DIM, np.nan, np.float32).tobytes(), 1)
    rest = np.frombuffer(kv.read_page(1, PAGE_TOKENS), np.float32).reshape(LAYERS, 2, PAGE_TOKENS, -1)[:, :, 1:]
    assert (rest == 0).all()


def test_a_write_touches_its_own_page_only() -> None:
    _, kv = make()
    before = [fill(kv, page, seed=page) for page in range(PAGES)]
    kv.write_page(3, bytes(len(kv.read_page(3, PAGE_TOKENS))), PAGE_TOKENS)
    kv.clear(torch.tensor([0]))
    for page in (1, 2, 4):
        found = np.frombuffer(kv.read_page(page, PAGE_TOKENS), np.float32)
        assert (found == before[page].numpy().reshape(-1)).all()
    assert not any(kv.read_page(page, PAGE_TOKENS).strip(b"\0") for page in (0, 3))


@pytest.mark.parametrize("pages", [(4, 0, PAGES, 4), (1, 2, 3), (3, 2, 1), (0,)])
def test_pages_are_read_in_the_order_asked_for(pages: tuple[int, ...]) -> None:
    _, kv = make()
    content = [
        *(fill(kv, page, seed=page) for page in range(PAGES)),
        torch.zeros(LAYERS, 2, PAGE_TOKENS, KV_HEADS, HEAD_DIM),
    ]
    keys, values = kv.read(1, pages_of(*pages))
    assert len(keys) == len(values) == len(pages)
    for place, page in enumerate(pages):
        expected = content[page][1]
        assert torch.equal(keys[place], expected[0])
        assert torch.equal(values[place], expected[1])


def test_a_payload_of_the_wrong_size_is_our_bug_and_changes_nothing() -> None:
    _, kv = make()
    content = fill(kv, 0, seed=0)
    with pytest.raises(ValueError, match="reshape"):
        kv.write_page(0, b"\0" * 12, 2)
    assert (np.frombuffer(kv.read_page(0, PAGE_TOKENS), np.float32) == content.numpy().reshape(-1)).all()


def large() -> KVTensors:
    spec = ModelSpec("large", 4, 8, 64, "float32", 16, 1 << 20, 32, "", "")
    assert 1025 * spec.page_bytes > 4 * AHEAD_BYTES
    return KVTensors(spec, pages=1024)


def taken(kv: KVTensors) -> int:
    """Bytes of the pool that the kernel has given, mincore(2), once they do not grow any more."""
    pool = kv._pool
    start = pool.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    resident = np.zeros(-(-(pool.data_ptr() + pool.nbytes - start) // mmap.PAGESIZE), np.uint8)
    counts = [-1]
    while len(counts) < 2 or counts[-1] != counts[-2]:
        time.sleep(0.3)
        assert not ctypes.CDLL(None).mincore(
            ctypes.c_void_p(start), ctypes.c_size_t(pool.nbytes), ctypes.c_void_p(resident.ctypes.data)
        )
        counts.append(int((resident & 1).sum()) * mmap.PAGESIZE)
    return counts[-1]


def test_of_a_large_pool_only_the_beginning_is_taken_until_it_is_written() -> None:
    kv = large()
    assert AHEAD_BYTES - SLACK < taken(kv) < AHEAD_BYTES + SLACK
    assert kv.read_page(1023, 32) == bytes(kv.spec.page_bytes)


def test_memory_is_taken_ahead_of_the_pages_in_use_and_nothing_in_it_changes() -> None:
    kv = large()
    reached = AHEAD_BYTES // kv.spec.page_bytes
    payload = bytes(range(256)) * (kv.spec.page_bytes // 256)
    kv.write_page(reached, payload, 32)
    assert 2 * AHEAD_BYTES - SLACK < taken(kv) < 2 * AHEAD_BYTES + SLACK
    assert kv.read_page(reached, 32) == payload


def test_a_pool_that_is_full_is_taken_whole() -> None:
    kv = large()
    for page in range(0, 1024, 100):
        kv.clear(torch.tensor([page]))
    assert taken(kv) > 1025 * kv.spec.page_bytes - SLACK
