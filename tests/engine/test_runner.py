"""The runner: whatever the chunks, the pages and the company, the logits are those of transformers' own attention."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk
from runtime.engine.attention import ATTENTION
from runtime.engine.kv_tensors import KVTensors
from runtime.engine.runner import TorchRunner
from runtime.errors import ModelError
from runtime.ids import SequenceId
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import TINY
from tests.engine.generating import generated
from tests.engine.lanes import PAGES, Lane, scattered

KINDS = ("llama", "qwen2", "qwen3")
SPEC = ModelSpec("tiny", TINY.layers, TINY.kv_heads, TINY.head_dim, "float32", TINY.vocab, TINY.max_tokens, 32, "", "")
TOLERANCE = 5e-5  # logits are of the order of 2; what float32 sums differ by in another order


def prompt(size: int, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(TINY.vocab) for _ in range(size)]


def side_by_side(count: int, lanes: int) -> list[list[int]]:
    return [list(range(5 + lane * count, 5 + (lane + 1) * count)) for lane in range(lanes)]


@pytest.fixture
def runner(checkpoint: Callable[[str], Path]) -> Callable[[str], TorchRunner]:
    def make(kind: str, dtype: str = "float32") -> TorchRunner:
        model = load_model(open_checkpoint(checkpoint(kind)), getattr(torch, dtype), ATTENTION)
        return TorchRunner(model, KVTensors(replace(SPEC, dtype=dtype), PAGES))

    return make


def greedy(runner: TorchRunner, lane: Lane, chunk_tokens: int, count: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < count:
        logits = runner.forward((lane.chunk(chunk_tokens),))
        if len(logits):
            answer.append(int(logits[0].argmax()))
            lane.tokens.append(answer[-1])
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "chunk_tokens"), [(1, 8), (31, 31), (32, 7), (33, 32), (500, 64), (500, 33), (70, 1)])
def test_greedy_is_what_transformers_generates(
    kind: str,
    size: int,
    chunk_tokens: int,
    runner: Callable[[str], TorchRunner],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    tokens = prompt(size)
    expected = generated(reference(kind), tokens, 64)
    assert len(set(expected)) >= 16
    (pages,) = scattered(18, 1)
    assert greedy(runner(kind), Lane("a", tokens, pages), chunk_tokens, 64) == expected


@pytest.mark.parametrize("place_pages", [scattered, side_by_side])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_step_gives_each_sequence_its_own_logits(
    kind: str,
    place_pages: Callable[[int, int], list[list[int]]],
    runner: Callable[[str], TorchRunner],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    """Decodes of different lengths, a chunk in the middle of a prompt, a whole prompt, a prompt of one token."""
    engine = runner(kind)
    sizes = (200, 33, 64, 97, 40, 1)
    lanes = [
        Lane(str(place), prompt(size, place), pages)
        for place, (size, pages) in enumerate(zip(sizes, place_pages(8, len(sizes)), strict=True))
    ]
    assert len(engine.forward(tuple(lane.chunk(len(lane.tokens) - 1) for lane in lanes[:3]))) == 0
    assert len(engine.forward((lanes[3].chunk(50),))) == 0
    logits = engine.forward(tuple(lane.chunk(100) for lane in lanes))
    with torch.inference_mode():
        for row, lane in zip(logits, lanes, strict=True):
            expected = reference(kind)(torch.tensor([lane.tokens])).logits[0, -1]
            torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)


def test_bfloat16_is_close_to_float32(runner: Callable[..., TorchRunner]) -> None:
    (pages,) = scattered(8, 1)
    rows = []
    for dtype in ("float32", "bfloat16"):
        engine, lane = runner("llama", dtype), Lane("a", prompt(150), pages)
        engine.forward((lane.chunk(100),))
        engine.forward((lane.chunk(49),))
        rows.append(engine.forward((lane.chunk(1),))[0])
        assert rows[-1].dtype == torch.float32
    assert float((rows[0] - rows[1]).norm() / rows[0].norm()) < 0.1


def test_what_a_page_held_before_reaches_nobody(
    runner: Callable[[str], TorchRunner], reference: Callable[[str], PreTrainedModel]
) -> None:
    engine = runner("llama")
    poison = np.full(SPEC.page_bytes // 4, np.nan, np.float32).tobytes()
    for page in range(PAGES):
        engine.kv.write_page(page, poison, SPEC.page_tokens)
    lanes = [Lane(str(size), prompt(size, size), pages) for size, pages in zip((40, 70), scattered(4, 2), strict=True)]
    engine.forward(tuple(lane.chunk(len(lane.tokens) - 1) for lane in lanes))
    logits = engine.forward(tuple(lane.chunk(1) for lane in lanes))
    with torch.inference_mode():
        for row, lane in zip(logits, lanes, strict=True):
            expected = reference("llama")(torch.tensor([lane.tokens])).logits[0, -1]
            torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("place_pages", [scattered, side_by_side])
@pytest.mark.parametrize("group_pages", [1, 8])
def test_many_long_sequences_decode_in_groups(
    group_pages: int,
    place_pages: Callable[[int, int], list[list[int]]],
    runner: Callable[[str], TorchRunner],
    reference: Callable[[str], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.engine.runner.CACHE_BYTES", group_pages * SPEC.page_bytes // SPEC.layers)
    engine = runner("llama")
    sizes = (3, 100, 65, 130, 64, 7)
    lanes = [Lane(str(size), prompt(size, size), pages) for size, pages in zip(sizes, place_pages(5, 6), strict=True)]
    engine.forward(tuple(lane.chunk(len(lane.tokens) - 1) for lane in lanes))
    logits = engine.forward(tuple(lane.chunk(1) for lane in lanes))
    with torch.inference_mode():
        for row, lane in zip(logits, lanes, strict=True):
            expected = reference("llama")(torch.tensor([lane.tokens])).logits[0, -1]
            torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)


MISTRAL = MistralConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=20,
)
GEMMA = Gemma2Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=20,
    query_pre_attn_scalar=64,
    attn_logit_softcapping=2.0,
)


@pytest.mark.parametrize(("model_class", "config"), [(MistralForCausalLM, MISTRAL), (Gemma2ForCausalLM, GEMMA)])
def test_windows_and_softcaps_are_taken_from_what_the_model_passes(
    model_class: Callable[..., PreTrainedModel], config: MistralConfig | Gemma2Config
) -> None:
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = prompt(90)
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        expected = model(torch.tensor([tokens])).logits[0]
        model.set_attn_implementation(ATTENTION)
    engine = TorchRunner(model, KVTensors(SPEC, PAGES))
    (pages,) = scattered(3, 1)
    lane = Lane("a", tokens, pages)
    for size in (15, 30, 43, 1, 1):
        chunk = replace(lane.chunk(size), sample=True)
        row = expected[chunk.start + len(chunk.tokens) - 1]
        torch.testing.assert_close(engine.forward((chunk,))[0], row, atol=1e-3 * float(row.std()), rtol=0)


def test_a_compiled_model_has_one_graph_for_many_steps(runner: Callable[[str], TorchRunner]) -> None:
    """Attention is opaque to the compiler: neither the chunks nor their pages make it compile anew."""
    graphs = 0

    def backend(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return module.forward

    plain, compiled = runner("llama"), runner("llama")
    model = compiled._model
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True, dynamic=True)
    lanes = [[Lane(str(place), prompt(90, place), pages) for place, pages in enumerate(scattered(3, 2))] for _ in "ab"]
    for size in (31, 17, 40, 2):
        logits = [
            engine.forward(tuple(replace(lane.chunk(size), sample=True) for lane in own))
            for engine, own in zip((plain, compiled), lanes, strict=True)
        ]
        torch.testing.assert_close(logits[0], logits[1], atol=TOLERANCE, rtol=0)
    assert graphs == 1


def test_the_probe_leaves_the_pool_as_it_was(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("qwen3")
    engine.probe()
    assert not any(engine.kv.read_pages([(page, SPEC.page_tokens)])[0].strip(b"\0") for page in range(PAGES))


def test_the_probe_refuses_attention_in_both_directions(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    engine._model.model.layers[1].self_attn.is_causal = False
    with pytest.raises(ModelError, match="LlamaAttention attends in both directions"):
        engine.probe()


def test_the_probe_names_an_argument_that_it_does_not_know(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    engine._model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"attention_sinks": 4}), with_kwargs=True
    )
    with pytest.raises(ModelError, match="passes attention_sinks to attention: not supported yet"):
        engine.probe()


def test_the_probe_refuses_a_model_in_training_mode(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    attention = engine._model.model.layers[0].self_attn
    attention.attention_dropout = 0.1
    attention.train()
    with pytest.raises(ModelError, match="the model is in training mode"):
        engine.probe()


def test_the_probe_refuses_a_model_that_brings_masks(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    engine._model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"attention_mask": torch.ones(1)}), with_kwargs=True
    )
    with pytest.raises(ModelError, match="brings an attention mask of its own"):
        engine.probe()


def test_the_probe_names_the_layers_that_do_not_attend_here(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    attention = engine._model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(ModelError, match=r"layers \[1\] of the model do not attend through Baton"):
        engine.probe()


def test_the_probe_refuses_weights_that_overflow(runner: Callable[[str], TorchRunner]) -> None:
    engine = runner("llama")
    engine._model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="logits are not finite"):
        engine.probe()


def test_a_block_table_that_is_too_short_is_our_bug(runner: Callable[[str], TorchRunner]) -> None:
    with pytest.raises(AssertionError, match="block table of a is too short"):
        runner("llama").forward((Chunk(SequenceId("a"), (1, 2), 31, (0,), sample=True),))
