"""A pool that lies as another engine's: the same pages and the same answers as one that lies as ours."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.domain.batching import Limits
from runtime.domain.spec import ModelSpec
from runtime.engine.core import EngineCore
from runtime.engine.kv_tensors import DTYPES, KVTensors, StepKV
from runtime.engine.laid_kv import LaidKV, PoolForm, pool_of
from runtime.engine.native import NativeCompute, build_native, engine_core, spec_of
from runtime.engine.paging import PageList
from runtime.engine.parallel.leader import start_group
from runtime.errors import InvalidArgument
from runtime.model.checkpoint import open_checkpoint
from runtime.model.share import shares_of
from runtime.model.tokenizer import Tokenizer
from tests.engine.answering import GREEDY, prompt, sequence, split
from tests.engine.parallel.groups import PATIENCE_S, settings_of, start_thread

LAYERS, PAGE_TOKENS, KV_HEADS, HEAD_DIM, PAGES = 3, 4, 2, 8, 5
FORMS = [
    PoolForm("vllm_neuron"),
    PoolForm("vllm_cuda", 16),
    PoolForm("nxdi", 10_000),
    PoolForm("nxdi_transposed", 6),
    PoolForm("nxdi_prefix", 2),
    PoolForm("nxdi_chunked", 1),
    PoolForm("slots", 8),
    PoolForm("baton", 7),
]


def spec_in(dtype: str) -> ModelSpec:
    return ModelSpec("tiny", LAYERS, KV_HEADS, HEAD_DIM, dtype, 16, 64, PAGE_TOKENS, "", "")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_read_and_written_as_ours_is(form: PoolForm, dtype: str) -> None:
    spec = spec_in(dtype)
    pools: list[StepKV] = [KVTensors(spec, PAGES), LaidKV(spec, PAGES, form)]
    source = random.Random(0)
    for page, tokens in ((3, PAGE_TOKENS), (1, 2), (4, PAGE_TOKENS), (0, 1)):
        payload = source.randbytes(spec.token_bytes * tokens)
        payload = (np.frombuffer(payload, np.uint8) & 0x3F).tobytes()  # nothing that is no number
        for pool in pools:
            pool.write_page(page, memoryview(payload), tokens)
    keys, values = (torch.randn(3, KV_HEADS, HEAD_DIM).to(DTYPES[dtype]) for _ in "kv")
    for pool in pools:
        pool.write(1, torch.tensor([4 * 2, 4 * 2 + 3, 4 * 4 + 1]), keys, values)
        pool.clear(torch.tensor([3]))
    wanted = [(page, tokens) for page in range(PAGES) for tokens in (1, PAGE_TOKENS)]
    ours, theirs = (pool.read_pages(wanted) for pool in pools)
    assert ours == theirs
    assert any(any(payload) for payload in ours)
    pages = PageList.of(np.array([4, 0, PAGES, 2]))
    for layer in range(LAYERS):
        for mine, other in zip(pools[0].read(layer, pages), pools[1].read(layer, pages), strict=True):
            assert torch.equal(mine, other)
    assert pools[0].layer_page_bytes == pools[1].layer_page_bytes


def test_a_layout_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="'sideways' is not known"):
        pool_of(spec_in("float32"), PAGES, PoolForm("sideways"))


Expected = Callable[[str, tuple[int, ...]], list[int]]


@pytest.fixture
def engines(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[PoolForm, int], EngineCore]]:
    """Engine cores over one small model, whose pools lie as asked, of that many ranks."""
    path, limits = checkpoint("llama"), Limits(step_tokens=96, max_running=32)
    with ExitStack() as stack:

        def build(form: PoolForm, ranks: int) -> EngineCore:
            settings = replace(settings_of(path), form=form)
            if ranks == 1:
                return build_native(settings, limits, lambda _: 64)
            opened = open_checkpoint(path)
            spec, shares = spec_of(opened, settings), shares_of(opened, ranks)
            group = start_group(
                path, spec, shares, 64, threads=1, spare=0, form=form, start=start_thread, deadline_s=PATIENCE_S
            )
            core = engine_core(spec, 64, limits, NativeCompute(group, group), Tokenizer(path))
            stack.callback(core.close)
            return core

        yield build


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ((PoolForm("vllm_neuron", 16), 2), (PoolForm("vllm_cuda", 128), 1)),
        ((PoolForm("nxdi_transposed", 256), 4), (PoolForm("baton", 24), 2)),
        ((PoolForm("nxdi_chunked", 8), 1), (PoolForm("nxdi_prefix", 64), 2)),
    ],
    ids=str,
)
def test_an_answer_is_token_exact_between_engines_that_have_nothing_in_common(
    here: tuple[PoolForm, int],
    there: tuple[PoolForm, int],
    engines: Callable[[PoolForm, int], EngineCore],
    expected: Expected,
) -> None:
    prefill, decode = engines(*here), engines(*there)
    for size in (33, 100):
        for name in ("cold", "warm"):
            asked = sequence(name, prompt(size), GREEDY)
            assert split(prefill, decode, asked, lose={1} if name == "cold" else None) == expected(
                "llama", prompt(size)
            )
