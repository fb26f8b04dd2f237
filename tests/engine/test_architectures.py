"""Every architecture that is proven answers as transformers' own eager attention does, however its tokens are run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore
from runtime.engine.kv_tensors import KVTensors
from runtime.engine.runner import TorchRunner
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec
from tests.engine.answering import GREEDY, answers, prompt, sequence, split
from tests.engine.architectures import ARCHITECTURES, WINDOW
from tests.engine.lanes import PAGES, Lane, scattered
from tests.scale import scaled

ALL = pytest.mark.parametrize("kind", ARCHITECTURES)
PAGE = 32
# Beside the borders of pages and of windows, which the 64 tokens that follow cross too.
SIZES = scaled((33, 100), (1, PAGE - 1, PAGE, PAGE + 1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 100, 500))
CHUNKS = scaled((7,), (1, 7, 32, 33, 64, 512))
Expected = Callable[[str, tuple[int, ...]], list[int]]


@ALL
def test_the_logits_are_those_of_transformers(
    kind: str, checkpoint: Callable[[str], Path], reference: Callable[[str], PreTrainedModel]
) -> None:
    opened = open_checkpoint(checkpoint(kind))
    spec = checkpoint_spec(opened, name=kind, dtype="float32", page_tokens=PAGE)
    runner = TorchRunner(load_model(opened, torch.float32, ATTENTION), KVTensors(spec, PAGES))
    tokens = prompt(WINDOW * 5)
    with torch.inference_mode():
        expected = reference(kind)(torch.tensor([tokens]), use_cache=False).logits[0]
    (pages,) = scattered(7, 1)
    lane = Lane("a", tokens, pages)
    for size in (1, 30, 1, 1, WINDOW, 1, 100, 25, 1):
        chunk = replace(lane.chunk(size), sample=True)
        row = expected[lane.computed - 1]
        torch.testing.assert_close(runner.forward((chunk,))[0], row, atol=1e-4 * float(row.std()), rtol=0)


@ALL
@pytest.mark.parametrize("step_tokens", CHUNKS)
def test_greedy_is_token_exact_cold_and_from_cached_pages(
    kind: str, step_tokens: int, engine: Callable[..., EngineCore], expected: Expected
) -> None:
    core = engine(kind, step_tokens=step_tokens)
    for size in SIZES:
        for name in ("cold", "warm"):
            found = answers(core, [sequence(name, prompt(size), GREEDY)])
            assert found[name] == expected(kind, prompt(size)), (name, size)


@ALL
def test_sixteen_at_once_are_each_token_exact(kind: str, engine: Callable[..., EngineCore], expected: Expected) -> None:
    crowd = [sequence(f"{copy}:{size}", prompt(size), GREEDY) for copy in range(16) for size in SIZES][:16]
    for name, tokens in answers(engine(kind), crowd).items():
        assert tokens == expected(kind, prompt(int(name.split(":")[1])))


@ALL
def test_a_preempted_sequence_is_token_exact(kind: str, engine: Callable[..., EngineCore], expected: Expected) -> None:
    """The longest takes 6 pages and the others 4 or more, in a pool of 6."""
    crowd = [sequence(str(size), prompt(size), GREEDY) for size in SIZES if 32 < size <= 100]
    for name, tokens in answers(engine(kind, pages=6), crowd).items():
        assert tokens == expected(kind, prompt(int(name)))


@ALL
def test_a_handed_over_sequence_is_token_exact(
    kind: str, engine: Callable[..., EngineCore], expected: Expected
) -> None:
    prefill, decode = engine(kind), engine(kind)
    for size in SIZES[1:]:
        for name in ("cold", "warm"):
            asked = sequence(name, prompt(size), GREEDY)
            assert split(prefill, decode, asked, lose={1} if name == "cold" else None) == expected(kind, prompt(size))
