"""The pool's memory: pages leave and enter in the canonical layout, bit for bit, and show nothing older."""

import numpy as np
import psutil
import pytest
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.kv_tensors import DTYPES, KVTensors
from runtime.engine.paging import PageList

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


def test_a_large_pool_takes_no_memory_until_it_is_written() -> None:
    spec = ModelSpec("large", 4, 8, 64, "float32", 16, 1 << 20, 32, "", "")
    before = psutil.Process().memory_info().rss
    kv = KVTensors(spec, pages=1024)
    assert 1025 * spec.page_bytes > 512 << 20
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert kv.read_page(1023, 32) == bytes(spec.page_bytes)
