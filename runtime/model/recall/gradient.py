"""The loss of a batch and its gradient, computed in shards; knows nothing of what is done with the gradient."""

from concurrent.futures import ThreadPoolExecutor
from typing import Self

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from runtime.model.recall.batches import Batch


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy over the assistant's tokens.

    Calls the layers one by one: the whole model would take a gap in the positions for a border between two packed
    sequences and hide everything before it.
    """
    body = model.model
    hidden = body.embed_tokens(batch.tokens)
    rotations = body.rotary_emb(hidden, batch.positions)
    for layer in body.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotations)
    answers = body.norm(hidden).flatten(0, 1).index_select(0, batch.answers)
    logits = functional.linear(answers, body.embed_tokens.weight)
    return functional.cross_entropy(logits, batch.targets, reduction="sum")


def _prepare_thread() -> None:
    torch.set_num_threads(1)
    # Heads that have learned to look at one token give all others a weight next to nothing, which is slow to reckon
    # with: a step takes twice as long with such numbers as without.
    torch.set_flush_denormal(True)


class ShardedGradient:
    """Computes a step's gradient in one thread a shard, each with one torch thread.

    Two threads that share every operator wait for each other at each of them, which on a busy machine costs most of
    the time; shards meet once a step. The sum is taken in the shards' order, so it is the same every time.
    """

    def __init__(self, model: LlamaForCausalLM, shards: int) -> None:
        self._model = model
        self._weights = list(model.parameters())
        self._pool = ThreadPoolExecutor(shards, initializer=_prepare_thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def take(self, shards: list[Batch]) -> float:
        """Leaves the gradient of the mean loss in the weights' `grad` and returns that loss."""
        answers = sum(len(shard.targets) for shard in shards)
        results = list(self._pool.map(self._shard, shards))
        for weight, *parts in zip(self._weights, *(gradients for _, gradients in results), strict=True):
            weight.grad = sum(parts[1:], start=parts[0]) / answers
        return sum(loss for loss, _ in results) / answers

    def _shard(self, batch: Batch) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = batch_loss(self._model, batch)
        return loss.item(), torch.autograd.grad(loss, self._weights)
