"""The checkpoints that the tests of this folder share, and what transformers itself answers with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.domain.batching import Limits
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_checkpoint, make_llama, make_qwen
from tests.engine.architectures import ARCHITECTURES, REFUSED, SEEDS, architecture
from tests.engine.generating import generated


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors as small as here gain nothing from more, and lose much beside other processes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny llama, qwen2, qwen3, or one of `ARCHITECTURES` or `REFUSED`; made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def path(kind: str) -> Path:
        if not (root / kind).exists():
            if kind in ARCHITECTURES or kind in REFUSED:
                make_checkpoint(root / kind, architecture(kind), seed=SEEDS.get(kind, 0))
            elif kind == "llama":
                make_llama(root / kind)
            else:
                make_qwen(root / kind, generation=int(kind[-1]))
        return root / kind

    return path


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """The same checkpoint in transformers' own eager attention, float32."""
    loaded: dict[str, PreTrainedModel] = {}

    def model(kind: str) -> PreTrainedModel:
        if kind not in loaded:
            loaded[kind] = load_model(open_checkpoint(checkpoint(kind)), torch.float32, "eager")
            loaded[kind].generation_config.eos_token_id = None
        return loaded[kind]

    return model


@pytest.fixture(scope="session")
def expected(reference: Callable[[str], PreTrainedModel]) -> Callable[[str, tuple[int, ...]], list[int]]:
    """What transformers generates after a prompt, 64 tokens that wander; asked once."""
    known: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def answer(kind: str, prompt: tuple[int, ...]) -> list[int]:
        if (kind, prompt) not in known:
            known[kind, prompt] = generated(reference(kind), list(prompt), 64)
            assert len(set(known[kind, prompt])) >= 16
        return known[kind, prompt]

    return answer


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Callable[..., EngineCore]:
    def build(kind: str = "llama", pages: int = 600, step_tokens: int = 96) -> EngineCore:
        settings = NativeSettings("tiny", checkpoint(kind), "float32", page_tokens=32, threads=1)
        return build_native(settings, Limits(step_tokens, max_running=32), lambda _: pages)

    return build
