"""What transformers' own `generate` answers: the oracle of the native engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


def generated(model: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    """`count` greedy tokens after `tokens`, by full arithmetic, whatever an engine on this thread has set."""
    generate: Any = model.generate
    ids = torch.tensor([tokens])
    with _denormals():
        output = generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return [int(token) for token in output[0, len(tokens) :]]


def flushing() -> bool:
    """Whether this thread takes denormal numbers for zero."""
    return float(torch.tensor(1e-39) * 0.5) == 0


@contextmanager
def _denormals() -> Iterator[None]:
    before = flushing()
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
