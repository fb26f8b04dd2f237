"""Training: its starting point copies already, its optimizer orthogonalizes, and its seed decides everything."""

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from runtime.model.recall.batches import RowEncoder
from runtime.model.recall.gradient import ShardedGradient, batch_loss
from runtime.model.recall.induction import plant_induction_heads
from runtime.model.recall.muon import orthogonalized
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.recall.training import Recipe, new_model, train

_SMALL = Recipe(steps=2, stages=((1.0, 4, 64),))
_TOKENIZER: Any = AutoTokenizer.from_pretrained(SHIPPED_MODEL)


def test_a_planted_model_repeats_what_it_never_saw_in_training() -> None:
    model = new_model(_SMALL, _TOKENIZER)
    once = torch.randint(6, len(_TOKENIZER), (4, 60))

    def copied() -> float:
        with torch.inference_mode():
            guesses = model(torch.cat([once, once], dim=1)).logits[:, 60:-1].argmax(dim=-1)
        return float((guesses == once[:, 1:]).float().mean())

    assert copied() < 0.05
    plant_induction_heads(model)
    assert copied() > 0.8


def test_an_orthogonalized_update_stretches_every_direction_about_alike() -> None:
    values = torch.linalg.svdvals(orthogonalized(torch.randn(3, 20, 50)))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_shards_give_the_gradient_of_the_whole_batch() -> None:
    model = new_model(_SMALL, _TOKENIZER)
    encoder = RowEncoder(_TOKENIZER)
    shards = [encoder.batch(random.Random(seed), 2, 64, gap_share=1.0, drill_share=0.5) for seed in (1, 2)]
    with ShardedGradient(model, 2) as gradient:
        loss = gradient.take(shards)
    sharded = model.model.norm.weight.grad
    answers = sum(len(shard.targets) for shard in shards)
    whole = torch.stack([batch_loss(model, shard) for shard in shards]).sum() / answers
    (expected,) = torch.autograd.grad(whole, [model.model.norm.weight])
    assert abs(loss - whole.item()) < 1e-4
    assert sharded is not None
    torch.testing.assert_close(sharded, expected)


def test_a_row_is_what_the_chat_template_renders() -> None:
    tokens, positions, counted = RowEncoder(_TOKENIZER).row(random.Random(4), 400, gap_share=0.0, drill_share=0.5)
    assert _TOKENIZER.encode(_TOKENIZER.decode(tokens)) == tokens
    assert positions == list(range(401))
    said = _TOKENIZER.decode([token for token, counts in zip(tokens, counted, strict=True) if counts])
    assert "<|user|>" not in said
    assert "<|end|>" in said


def test_gaps_stay_inside_the_context() -> None:
    encoder = RowEncoder(_TOKENIZER)
    for seed in range(50):
        _, positions, _ = encoder.row(random.Random(seed), 128, gap_share=1.0, drill_share=0.5)
        assert positions == sorted(set(positions))
        assert positions[-1] < 4096


def test_the_same_recipe_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(_SMALL, tmp_path / name, lambda _: None)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
