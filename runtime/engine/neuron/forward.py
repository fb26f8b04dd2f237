"""A model over one launch: the function that is compiled, once for each bucket, and the numbers it takes."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from runtime.engine.neuron.attention import Attend, PoolTensors, StaticStep, masked_attention
from runtime.engine.neuron.buckets import Bucket, Piece


def plan_of(piece: Piece, page_tokens: int) -> torch.Tensor:
    """All numbers of a launch in one int32 tensor on the host, so that one copy brings them to the device:
    C token ids, C positions, C slots, P pages of the past, and the row whose logits are wanted.

    Pool page n is page n + 1 of the tensors; padding is written to, and read from, page 0.
    """
    bucket, count = piece.bucket, len(piece.tokens)
    padding = bucket.tokens - count
    positions = range(piece.start, piece.start + bucket.tokens)
    slots = [
        (piece.table[position // page_tokens] + 1) * page_tokens + position % page_tokens
        for position in positions[:count]
    ]
    past = [page + 1 for page in piece.table[: -(-piece.start // page_tokens)]]
    numbers = [
        *piece.tokens,
        *[0] * padding,
        *positions,
        *slots,
        *[0] * padding,
        *past,
        *[0] * (bucket.past_pages - len(past)),
        count - 1,
    ]
    return torch.tensor(numbers, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Forward:
    """`model` must have been loaded with the attention implementation `STATIC_ATTENTION`."""

    model: PreTrainedModel
    pool: PoolTensors
    attend: Attend = masked_attention

    def __call__(self, bucket: Bucket, plan: torch.Tensor) -> torch.Tensor:
        """Write the tokens' keys and values; the logits `[vocab]` in float32 of the row that `plan` names."""
        count = bucket.tokens
        ids, positions, slots = plan[:count], plan[count : 2 * count], plan[2 * count : 3 * count]
        table, last = plan[3 * count : -1], plan[-1:]
        step = StaticStep(self.pool, positions, slots, table, self.attend)
        logits: torch.Tensor = self.model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=last, baton_step=step
        ).logits
        return logits[0, 0].float()
