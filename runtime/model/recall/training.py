"""Trains the demo model from a seed, on this machine's CPU, and writes it as a Hugging Face directory.

The learning rate follows the step count alone, so the same seed, steps and thread count give the same weights.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from runtime.model.recall.batches import RowEncoder
from runtime.model.recall.gradient import ShardedGradient
from runtime.model.recall.induction import plant_induction_heads
from runtime.model.recall.muon import Muon
from runtime.model.recall.vocabulary import BEGIN, END, PAD, learn_tokenizer, token_id

_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights; `stages` are (share of all steps, rows a step, tokens a row)."""

    steps: int = 2500
    seed: int = 7
    shards: int = 2
    stages: tuple[tuple[float, int, int], ...] = (
        (0.1, 16, 128),
        (0.3, 8, 256),
        (0.45, 8, 512),
        (0.15, 6, 768),
    )
    late_from: float = 0.6
    gap_share: float = 0.25
    drill_share: float = 0.8
    late_drill_share: float = 0.6
    hidden_size: int = 192
    layers: int = 4
    heads: int = 4
    head_size: int = 48
    mlp_size: int = 256
    rope_theta: float = 1e6
    matrix_rate: float = 0.003
    vector_rate: float = 0.0003
    warmup_steps: int = 50

    def rows(self, step: int) -> tuple[int, int]:
        """How many rows of how many tokens a step takes."""
        passed = 0.0
        for share, rows, length in self.stages:
            passed += share
            if step < passed * self.steps:
                return rows, length
        return self.stages[-1][1:]

    def rate(self, step: int) -> float:
        """The share of the peak learning rate: linear warm-up, flat for a third, then cosine to a hundredth."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        progress = max(0.0, (step / self.steps - 0.33) / 0.67)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.mlp_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_size,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=_CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BEGIN),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    return _untrained(config, torch.float32)


def _untrained(config: PreTrainedConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the layers' matrices (recall appears in far fewer steps than with AdamW alone), AdamW for the rest."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in known]
    return Muon(matrices, recipe.matrix_rate), torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)


def train(recipe: Recipe, out: Path, report: Callable[[str], None], save_every_s: float = 240.0) -> None:
    """Runs the whole recipe and leaves the final weights, in bf16, in `out`; writes earlier ones on the way."""
    torch.set_num_threads(1)  # only the shards run side by side
    tokenizer = learn_tokenizer(recipe.seed, _CONTEXT_TOKENS)
    model = new_model(recipe, tokenizer)
    plant_induction_heads(model)
    encoder = RowEncoder(tokenizer)
    muon, adam = optimizers(model, recipe)
    rng = random.Random(recipe.seed)
    started = saved = time.monotonic()
    mean_loss = math.log(len(tokenizer))
    with ShardedGradient(model, recipe.shards) as gradient:
        for step in range(recipe.steps):
            rows, length = recipe.rows(step)
            late = step >= recipe.late_from * recipe.steps
            habits = (recipe.gap_share, recipe.late_drill_share) if late else (0.0, recipe.drill_share)
            shards = [encoder.batch(rng, rows // recipe.shards, length, *habits) for _ in range(recipe.shards)]
            loss = gradient.take(shards)
            muon.rate = recipe.matrix_rate * recipe.rate(step)
            adam.param_groups[0]["lr"] = recipe.vector_rate * recipe.rate(step)
            muon.step()
            adam.step()
            adam.zero_grad(set_to_none=True)
            mean_loss = 0.95 * mean_loss + 0.05 * loss
            now = time.monotonic()
            if step % 20 == 0:
                done = f"step {step} of {recipe.steps}, {now - started:.0f} s"
                report(f"{done}: {rows} rows of {length} tokens, loss {mean_loss:.4f}")
            if now - saved > save_every_s:
                save(model, tokenizer, out)
                saved = now
    save(model, tokenizer, out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the directory; the weights are rounded to bf16 on disk only."""
    rounded = _untrained(model.config, torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(
    out: Annotated[Path, typer.Option(help="The directory to write the model to.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps; the default is the shipped model's.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Decides the weights, the tokenizer and the data.")] = Recipe.seed,
) -> None:
    """Trains the demo model."""
    train(Recipe(steps=steps, seed=seed), out, lambda line: typer.echo(line))


if __name__ == "__main__":
    typer.run(main)
