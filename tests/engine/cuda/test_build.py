"""The engine of an accelerator's memory: exact where a GPU is, and here in all but the GPU.

What can be known without one: the same code over the CPU's memory, and a pretended GPU that computes nothing but knows
where every tensor is.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling
from runtime.engine.core import EngineCore
from runtime.engine.cuda.build import build_on_device, free_on_gpu, open_gpu
from runtime.engine.native import NativeSettings
from runtime.errors import ModelError, StartError
from runtime.model.synthetic import TINY
from tests.engine.answering import GREEDY, answers, prompt, sequence, split
from tests.engine.cuda import pretending
from tests.engine.generating import generated

KINDS = ("llama", "qwen3", "gemma2", "mistral")
SIZES = (1, 31, 32, 33, 300)
SEEDED = Sampling(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=7, ignore_eos=True)
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.cuda)]
PLENTY = 1 << 30


@pytest.fixture(params=DEVICES)
def build(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Callable[[str], EngineCore]:
    def make(kind: str) -> EngineCore:
        device = torch.device("cpu") if request.param == "cpu" else open_gpu()
        free = PLENTY if request.param == "cpu" else free_on_gpu(device)
        settings = NativeSettings("tiny", checkpoint(kind), "float32", 32, 1)
        return build_on_device(settings, Limits(96, 8), lambda _: 100, device, free)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_token_exact_alone_and_together(
    kind: str, build: Callable[[str], EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    core = build(kind)
    expected = {str(size): generated(reference(kind), list(prompt(size)), 64) for size in SIZES}
    for size in SIZES:
        assert answers(core, [sequence(str(size), prompt(size), GREEDY)]) == {str(size): expected[str(size)]}
    assert answers(core, [sequence(str(size), prompt(size), GREEDY) for size in SIZES]) == expected


def test_pages_go_between_it_and_the_cpu_either_way(
    build: Callable[[str], EngineCore], engine: Callable[..., EngineCore]
) -> None:
    here, there = engine("llama"), build("llama")
    for sampling in (GREEDY, SEEDED):
        asked = sequence("a", prompt(150), sampling)
        expected = answers(engine("llama"), [asked])["a"]
        assert split(here, there, asked, lose={1}) == expected
        assert split(there, here, asked, lose={2}) == expected


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(checkpoint: Callable[[str], Path]) -> None:
    settings = NativeSettings("tiny", checkpoint("llama"), "float32", 32, 1)
    with pytest.raises(ModelError, match=r"tiny does not fit: weights of .* are free"):
        build_on_device(settings, Limits(96, 8), lambda _: 100, torch.device("cpu"), 1 << 20)


def test_a_step_mixes_no_devices(checkpoint: Callable[[str], Path]) -> None:
    paths = [str(checkpoint(kind)) for kind in KINDS]
    told = subprocess.run([sys.executable, pretending.__file__, *paths], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == [str([(3, TINY.vocab), (2, TINY.vocab), (3, TINY.vocab)])] * len(KINDS)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch was built with CUDA")
def test_a_torch_without_cuda_is_told() -> None:
    with pytest.raises(StartError, match=r"device cuda: this torch, .*, was built without CUDA"):
        open_gpu()
