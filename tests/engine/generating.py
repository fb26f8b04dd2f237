"""What transformers' own `generate` answers: the oracle of the native engine."""

from typing import Any

import torch
from transformers import PreTrainedModel


def generated(model: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    """`count` greedy tokens after `tokens`."""
    generate: Any = model.generate
    ids = torch.tensor([tokens])
    output = generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [int(token) for token in output[0, len(tokens) :]]
