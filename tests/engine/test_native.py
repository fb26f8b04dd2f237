"""The native engine: a real model through batcher, pages and sampler answers as transformers does, split or not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native, spec_of
from runtime.errors import ModelError
from runtime.model.checkpoint import WEIGHTS_FILE, open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama_146m
from tests.engine.answering import GREEDY, answers, prompt, sequence, split
from tests.engine.generating import flushing, generated
from tests.scale import scaled

KINDS = ("llama", "qwen2", "qwen3")
SEEDED = Sampling(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=7, ignore_eos=True)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_token_exact_alone_together_cold_and_warm(
    kind: str, engine: Callable[..., EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    sizes = (1, 31, 32, 33, scaled(500, 2000))
    expected = {str(size): generated(reference(kind), list(prompt(size)), 64) for size in sizes}
    assert all(len(set(tokens)) >= 16 for tokens in expected.values())
    core = engine(kind)
    for temperature in ("cold", "warm"):
        for size in sizes:
            found = answers(core, [sequence(str(size), prompt(size), GREEDY)])
            assert found == {str(size): expected[str(size)]}, (temperature, size)
    crowd = [sequence(f"{copy}:{size}", prompt(size), GREEDY) for copy in range(4) for size in sizes]
    for core_of_crowd in (core, engine(kind)):
        for name, tokens in answers(core_of_crowd, crowd).items():
            assert tokens == expected[name.split(":")[1]]


def test_attention_so_sharp_that_denormals_vanish_changes_no_token(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "sharp"))
    tensors = load_file(folder / WEIGHTS_FILE)
    sharper = {name: 6 * tensor for name, tensor in tensors.items() if "q_norm" in name}
    save_file(tensors | sharper, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    model = load_model(open_checkpoint(folder), torch.float32, "eager")
    model.generation_config.eos_token_id = None
    weights = model(torch.tensor([prompt(100)]), output_attentions=True).attentions
    assert any(bool(((layer > 0) & (layer < torch.finfo(torch.float32).tiny)).any()) for layer in weights)
    expected = generated(model, list(prompt(100)), 64)
    core = build_native(NativeSettings("sharp", folder, "float32", 32, 1), Limits(48, 4), lambda _: 32)
    assert flushing()
    assert answers(core, [sequence("a", prompt(100), GREEDY)])["a"] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 32, 33, 65, 500])
def test_an_answer_is_the_same_when_another_engine_prefills(
    kind: str, size: int, engine: Callable[..., EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    prefill, decode = engine(kind), engine(kind)
    expected = generated(reference(kind), list(prompt(size)), 64)
    assert split(prefill, decode, sequence("a", prompt(size), GREEDY)) == expected
    assert split(prefill, decode, sequence("warm", prompt(size), GREEDY)) == expected


def test_pages_that_never_arrive_are_computed_instead(
    engine: Callable[..., EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    expected = generated(reference("llama"), list(prompt(300)), 64)
    assert split(engine(), engine(), sequence("a", prompt(300), GREEDY), lose={3, 9}) == expected


def test_preempted_sequences_go_on_where_they_were(
    engine: Callable[..., EngineCore], reference: Callable[[str], PreTrainedModel]
) -> None:
    """Five sequences of 5 pages each, in a pool of 12."""
    sizes = (90, 91, 92, 93, 94)
    found = answers(engine(pages=12), [sequence(str(size), prompt(size), GREEDY) for size in sizes])
    for size in sizes:
        assert found[str(size)] == generated(reference("llama"), list(prompt(size)), 64)


def test_seeded_answers_are_the_same_in_any_batch_and_after_any_prefill(engine: Callable[..., EngineCore]) -> None:
    asked = sequence("a", prompt(100), SEEDED)
    alone = answers(engine(), [asked])["a"]
    crowd = [sequence(str(size), prompt(size), replace(SEEDED, seed=size)) for size in (5, 60, 200)]
    assert answers(engine(step_tokens=33), [*crowd, asked])["a"] == alone
    assert split(engine(), engine(), asked) == alone
    assert answers(engine(), [sequence("a", prompt(100), replace(SEEDED, seed=8))])["a"] != alone


def test_an_answer_that_moves_to_another_engine_goes_on_with_the_same_tokens(engine: Callable[..., EngineCore]) -> None:
    asked = sequence("a", prompt(100), SEEDED)
    whole = answers(engine(), [asked])["a"]
    for given_out in (1, 17, 39):
        again = replace(asked, forced=tuple(whole[:given_out]))
        assert answers(engine(), [again])["a"] == whole[given_out:]


def test_the_spec_is_that_of_the_checkpoint(checkpoint: Callable[[str], Path]) -> None:
    settings = NativeSettings("tiny", checkpoint("qwen2"), "bfloat16", page_tokens=16, threads=1, max_tokens=100)
    spec = spec_of(open_checkpoint(settings.path), settings)
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.vocab) == (2, 2, 16, 512)
    assert (spec.dtype, spec.page_tokens, spec.max_tokens) == ("bfloat16", 16, 100)
    assert spec.page_bytes == 2 * 2 * 16 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype float16 is not supported; there are float32, bfloat16"),
        ({"max_tokens": 5000}, "max_tokens must be 2 to 4096, got 5000"),
        ({"path": Path("/nowhere")}, "/nowhere: there is no such model directory"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    checkpoint: Callable[[str], Path], changes: dict[str, object], message: str
) -> None:
    settings = NativeSettings("tiny", checkpoint("llama"), "float32", page_tokens=32, threads=1)
    with pytest.raises(ModelError, match=message):
        build_native(replace(settings, **changes), Limits(32, 4), lambda _: 8)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shape_that_benches_run_has_146_million_parameters(tmp_path: Path) -> None:
    make_llama_146m(tmp_path / "bench")
    model = load_model(open_checkpoint(tmp_path / "bench"), torch.bfloat16, "eager")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 146
