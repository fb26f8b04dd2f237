"""Attention inside a static graph: store new keys and values, gather the past by block table, attend under a mask.

Plain tensor operations only, with no branch on what a tensor holds, so that all of it is part of the one graph. How it
scores is replaceable (`Attend`): masked arithmetic here, a kernel of the vendor's where there is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from runtime.engine.attention import Scoring, scoring_of

STATIC_ATTENTION = "baton_static"
# queries [C, heads, D], keys and values [S, kv_heads, D], which keys each query sees [C, S]; out [C, heads, D].
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Scoring], torch.Tensor]


@dataclass(frozen=True, slots=True)
class PoolTensors:
    """Keys and values of each layer, apart: `[slots, kv_heads * copies, D]`, slot = page * page_tokens + offset.

    Apart and flat, because in a joint tensor every write would copy the whole of it. Page 0 is nobody's: padding is
    written there and read from there. Each head lies there `copies` times in a row.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    page_tokens: int
    copies: int = 1


class StaticStep:
    """The attention of one launch, for all layers.

    `positions` and `slots` `[C]` are those of its tokens; `table` `[P]` are the pages of what came before. All int32.
    """

    def __init__(
        self, pool: PoolTensors, positions: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, attend: Attend
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._table = table
        self._attend = attend
        past = torch.arange(table.shape[0] * pool.page_tokens, dtype=torch.int32, device=positions.device)
        self._queries = positions[:, None]
        self._keys = torch.cat((past, positions))
        # Beyond the first new token the past has nothing: a page that is half full, or padding.
        self._held = past < positions[0]
        self._there = torch.cat((self._held, torch.ones_like(positions, dtype=torch.bool)))

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """`[C, heads, D]` in and out."""
        pool = self._pool
        if pool.copies > 1:
            keys, values = keys.repeat_interleave(pool.copies, 1), values.repeat_interleave(pool.copies, 1)
        all_keys = self._after_past(pool.keys[layer], keys)
        all_values = self._after_past(pool.values[layer], values)
        pool.keys[layer].index_put_((self._slots,), keys)
        pool.values[layer].index_put_((self._slots,), values)
        return self._attend(queries, all_keys, all_values, self._visible(scoring.window), scoring)

    def _after_past(self, flat: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """`[P * page_tokens + C, kv_heads * copies, D]`. The past is read before the new is written, so that nothing
        has to wait between the two."""
        if not self._table.shape[0]:
            return new
        past = flat.view(-1, self._pool.page_tokens, *flat.shape[1:])[self._table].flatten(0, 1)
        # What is masked out weighs nothing, but nothing times a stale NaN is NaN.
        return torch.cat((torch.where(self._held[:, None, None], past, torch.zeros_like(past)), new))

    def _visible(self, window: int | None) -> torch.Tensor:
        seen = self._there & (self._keys <= self._queries)
        return seen if window is None else seen & (self._keys > self._queries - window)


def masked_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Softmax in float32 whatever the dtype; the heads that share a key stand where a longer query has its tokens."""
    tokens, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    shared = queries.view(tokens, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    rows = shared.reshape(kv_heads, -1, head_dim)
    scores = (torch.bmm(rows, keys.permute(1, 2, 0)) * scoring.scaling).float().view(*shared.shape[:3], -1)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = torch.where(visible, scores, torch.full_like(scores, torch.finfo(torch.float32).min))
    weights = torch.softmax(scores, -1).to(values.dtype).view(kv_heads, rows.shape[1], -1)
    output = torch.bmm(weights, values.transpose(0, 1)).view(shared.shape)
    return output.permute(2, 0, 1, 3).reshape(tokens, heads, head_dim)


def _static_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    baton_step: StaticStep,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The step travels through the model as an argument of its own; `[1, heads, C, D]` in, `[1, C, heads, D]` out."""
    scoring = scoring_of(module, query, attention_mask, scaling, dropout, sliding_window, softcap, others)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer: Any = module.layer_idx
    return baton_step.attend(layer, queries, keys, values, scoring)[None], None


# Without a mask function of the same name, models make no mask of their own.
AttentionInterface.register(STATIC_ATTENTION, _static_attention)
