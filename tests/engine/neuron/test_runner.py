"""The runner over the stand-in: whatever the chunks and the pages, the logits are those of dense attention."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk
from runtime.engine.neuron.attention import STATIC_ATTENTION
from runtime.engine.neuron.buckets import Bucket, Buckets, Piece
from runtime.engine.neuron.forward import Forward, plan_of
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.probe import probe
from runtime.engine.neuron.runner import NeuronRunner
from runtime.errors import ModelError
from runtime.ids import SequenceId
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from tests.engine.neuron.conftest import PAGE, PAGES, OnStandIn, Uncompiled, on_stand_in

KINDS = ("llama", "qwen3")
TOLERANCE = 1e-4  # logits are of the order of 2; what float32 sums differ by in another order


def prompt(size: int, seed: int = 0) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(512) for _ in range(size))


def chunks_of(tokens: tuple[int, ...], sizes: tuple[int, ...], seed: int = 0) -> list[Chunk]:
    """Chunks of these sizes, each sampled, in pages that lie scattered over the pool."""
    table = tuple(random.Random(seed).sample(range(PAGES), -(-len(tokens) // PAGE)))
    chunks, start = [], 0
    for size in sizes:
        chunks.append(Chunk(SequenceId("a"), tokens[start : start + size], start, table, sample=True))
        start += size
    assert start == len(tokens)
    return chunks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [(1,), (16,), (17,), (33, 1, 1), (5, 40, 1, 54), (100, 60), (150, 1, 1, 1), (1, 1, 14, 1)]
)
def test_logits_are_those_of_dense_attention(
    kind: str,
    sizes: tuple[int, ...],
    stand_in: Callable[[str], OnStandIn],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    tokens = prompt(sum(sizes))
    with torch.inference_mode():
        expected = reference(kind)(torch.tensor([tokens])).logits[0]
    for chunk in chunks_of(tokens, sizes):
        (logits,) = stand_in(kind).runner.forward((chunk,))
        last = chunk.start + len(chunk.tokens) - 1
        torch.testing.assert_close(logits, expected[last], atol=TOLERANCE, rtol=0)


def test_the_rows_of_many_sequences_come_in_their_order(
    stand_in: Callable[[str], OnStandIn], reference: Callable[[str], PreTrainedModel]
) -> None:
    prompts = [prompt(size, size) for size in (3, 20, 9, 41)]
    chunks = [
        replace(chunks_of(tokens, (len(tokens),))[0], table=tuple(range(place * 6, place * 6 + 6)), sample=place != 1)
        for place, tokens in enumerate(prompts)
    ]
    logits = stand_in("llama").runner.forward(tuple(chunks))
    with torch.inference_mode():
        wanted = [reference("llama")(torch.tensor([prompts[place]])).logits[0, -1] for place in (0, 2, 3)]
    torch.testing.assert_close(logits, torch.stack(wanted), atol=TOLERANCE, rtol=0)


def test_more_launches_than_the_device_queues_are_run(
    stand_in: Callable[[str], OnStandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = stand_in("llama").runner
    chunks = tuple(Chunk(SequenceId(str(place)), prompt(5, place), 0, (place,), sample=True) for place in range(5))
    together = runner.forward(chunks)
    monkeypatch.setattr("runtime.engine.neuron.runner._IN_FLIGHT", 2)
    assert torch.equal(runner.forward(chunks), together)


def test_a_stale_nan_in_a_page_reaches_nobody(stand_in: Callable[[str], OnStandIn]) -> None:
    """Neither where a page is not full yet, nor in nobody's page."""
    warmed = stand_in("llama")
    first, second = chunks_of(prompt(11), (10, 1), seed=3)
    warmed.runner.forward((first,))
    clean = warmed.runner.forward((second,))
    tensors = [*warmed.runner.kv.tensors.keys, *warmed.runner.kv.tensors.values]
    before = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor[:PAGE] = torch.nan
        tensor[(first.table[1] + 1) * PAGE + 2 : (first.table[1] + 2) * PAGE] = torch.nan
    poisoned = warmed.runner.forward((second,))
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)
    assert torch.equal(poisoned, clean)


def test_every_number_of_a_launch_is_an_int32() -> None:
    plan = plan_of(Piece(Bucket(4, 3), (7, 8), 9, (5, 2)), PAGE)
    assert plan.dtype == torch.int32
    ids, positions, slots, table, last = plan[:4], plan[4:8], plan[8:12], plan[12:15], plan[15:]
    assert ids.tolist() == [7, 8, 0, 0]
    assert positions.tolist() == [9, 10, 11, 12]
    assert slots.tolist() == [3 * PAGE + 1, 3 * PAGE + 2, 0, 0]
    assert table.tolist() == [6, 3, 0]
    assert last.tolist() == [1]


def test_a_window_is_taken_from_what_the_model_passes() -> None:
    config = MistralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=20,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = prompt(90)
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        expected = model(torch.tensor([tokens])).logits[0]
    model.set_attn_implementation(STATIC_ATTENTION)
    spec = ModelSpec("tiny", 2, 2, 16, "float32", 512, 512, PAGE, "", "")
    device = Uncompiled()
    kv = NeuronKV(spec, PAGES, device)
    runner = NeuronRunner(Forward(model, kv.tensors), kv, Buckets((Bucket(32, 12),), PAGE), device)
    runner.warm(lambda warmed: None)
    for chunk in chunks_of(tokens, (15, 30, 43, 1, 1)):
        row = expected[chunk.start + len(chunk.tokens) - 1]
        torch.testing.assert_close(runner.forward((chunk,))[0], row, atol=1e-3 * float(row.std()), rtol=0)


def test_heads_that_are_held_twice_compute_the_same_and_leave_once(
    checkpoint: Callable[[str], Path], stand_in: Callable[[str], OnStandIn]
) -> None:
    once, twice = stand_in("llama"), on_stand_in(checkpoint("llama"), (Bucket(32, 20),), 2, Uncompiled())
    assert twice.runner.kv.tensors.keys[0].shape[1] == 2 * once.runner.kv.tensors.keys[0].shape[1]
    one, other = (chunks_of(prompt(50), (30, 20)) for _ in "ab")
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(
            twice.runner.forward((mine,)), once.runner.forward((theirs,)), atol=TOLERANCE, rtol=0
        )
    pages = [(page, PAGE) for page in one[0].table[:6]]
    assert [len(payload) for payload in twice.runner.kv.read_pages(pages)] == [once.spec.page_bytes] * 6
    moved = (twice.runner.kv.read_pages(pages), once.runner.kv.read_pages(pages))
    first, second = (torch.frombuffer(bytearray(b"".join(each)), dtype=torch.float32) for each in moved)
    torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)


def probed(path: Path, change: Callable[[PreTrainedModel], None]) -> None:
    model = load_model(open_checkpoint(path), torch.float32, STATIC_ATTENTION)
    change(model)
    probe(model, ModelSpec("tiny", 2, 2, 16, "float32", 512, 512, PAGE, "", ""))


def test_the_probe_passes_what_can_run(checkpoint: Callable[[str], Path]) -> None:
    for kind in ("llama", "qwen2", "qwen3"):
        probed(checkpoint(kind), lambda model: None)


def test_the_probe_names_what_the_model_does_that_is_not_known(checkpoint: Callable[[str], Path]) -> None:
    def deafen(model: PreTrainedModel) -> None:
        model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)

    def turn(model: PreTrainedModel) -> None:
        model.model.layers[1].self_attn.is_causal = False

    def damage(model: PreTrainedModel) -> None:
        model.model.norm.weight.fill_(float("nan"))

    for change, message in ((deafen, r"layers \[1\]"), (turn, "both directions"), (damage, "not finite")):
        with pytest.raises(ModelError, match=message):
            probed(checkpoint("llama"), change)
