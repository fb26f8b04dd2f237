"""Attention over KV pages, as the attention function that transformers' models call. Owns the seam and the arithmetic.

The function hides KV write and attention in one opaque custom operation, which finds the step that is running on its
thread instead of being handed it: so a compiled graph of the model depends on nothing but the number of tokens.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from runtime.engine.kernels.library import Kernels, Rows
from runtime.engine.kv_tensors import StepKV
from runtime.engine.packing import multiplies_bfloat16_fast
from runtime.engine.paging import DecodeGroup, PackedStep, PrefillSpan
from runtime.engine.sharing import rows_of
from runtime.errors import ModelError

ATTENTION = "baton_paged"
# What models pass beside the arguments of the function, and what may be left unread in a packed step.
_UNREAD = {"position_ids", "use_cache", "output_attentions", "output_router_logits", "is_causal"}
_running = threading.local()


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer scores: scores are `scaling * q @ k`, over the last `window` tokens, bounded by `softcap`."""

    scaling: float
    window: int | None = None
    softcap: float | None = None


class Attention(Protocol):
    """What the attention function of the models calls."""

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """`[T, heads, head_dim]` in and out, of the keys and values `[T, kv_heads, head_dim]`."""


class StepAttention:
    """The attention of one packed step over `kv`, for all layers; of decode rows by `kernels` where they are given.
    `written` is told of each layer once its KV is there."""

    def __init__(
        self, step: PackedStep, kv: StepKV, written: Callable[[int], None], kernels: Kernels | None = None
    ) -> None:
        self._step = step
        self._kv = kv
        self._written = written
        self._kernels = kernels
        self._rows: dict[DecodeGroup, Rows] = {}
        # Long products are made in float32 where that takes less time.
        self._widens = kv.device.type == "cpu" and not multiplies_bfloat16_fast()
        self._masks: dict[tuple[DecodeGroup | PrefillSpan, int | None], torch.Tensor | None] = {}

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Store the step's keys and values of `layer`, then attend. `[T, heads, head_dim]` in and out."""
        self._kv.write(layer, self._step.slots, keys, values)
        self._written(layer)
        if len(self._step.decodes) == 1 and not self._step.prefills:
            return self._decode(self._step.decodes[0], queries, layer, scoring)
        output = queries.new_empty(queries.shape)
        for group in self._step.decodes:
            output[group.rows] = self._decode(group, queries[group.rows], layer, scoring)
        for span in self._step.prefills:
            rows = slice(span.first, span.end)
            past = self._past(span, layer) if span.start else (keys[rows], values[rows])
            output[rows] = self._prefill(span, queries[rows], *past, scoring)
        return output

    def _decode(self, group: DecodeGroup, queries: torch.Tensor, layer: int, scoring: Scoring) -> torch.Tensor:
        """The query heads that share a key head stand where a longer query would have its tokens."""
        if self._kernels is not None and (lying := self._kv.lying(layer)) is not None:
            if group not in self._rows:
                self._rows[group] = rows_of(group)
            rows = self._rows[group]
            return self._kernels.attend(queries, lying, rows, scoring.scaling, scoring.window, scoring.softcap)
        count, _, head_dim = queries.shape
        pages = self._kv.read(layer, group.pages)
        heads_first = (page.view(count, -1, *page.shape[2:])[:, : group.tokens].transpose(1, 2) for page in pages)
        keys, values = heads_first
        shared = queries.view(count, keys.shape[1], -1, head_dim)
        return dense_attention(shared, keys, values, self._mask(group, queries.dtype, scoring), scoring).flatten(1, 2)

    def _past(self, span: PrefillSpan, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the span's own rows and of all before them, `[length, kv_heads, head_dim]`."""
        keys, values = (pages.flatten(0, 1)[: span.length] for pages in self._kv.read(layer, span.pages))
        return keys, values

    def _prefill(
        self, span: PrefillSpan, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        plain = span.plainly_causal(scoring.window) and scoring.softcap is None
        dtype = torch.float32 if self._widens else queries.dtype
        mask = None if plain else self._mask(span, dtype, scoring)
        queries, keys, values = (tensor.to(dtype).transpose(0, 1)[None] for tensor in (queries, keys, values))
        return dense_attention(queries, keys, values, mask, scoring, causal=plain)[0].transpose(0, 1)

    def _mask(self, part: DecodeGroup | PrefillSpan, dtype: torch.dtype, scoring: Scoring) -> torch.Tensor | None:
        key = (part, scoring.window)
        if key not in self._masks:
            self._masks[key] = part.mask(scoring.window, dtype)
        return self._masks[key]


def dense_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """`[n, heads, tokens, head_dim]` each. Softmax in float32 whatever the dtype."""
    if scoring.softcap is None:
        return scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=causal, scale=scoring.scaling, enable_gqa=True
        )
    assert not causal
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = queries @ keys.transpose(-1, -2) * scoring.scaling
    scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype) @ values


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Models that run on this thread within the context attend through `attention`."""
    assert getattr(_running, "attention", None) is None, "a step began within another on the same thread"
    _running.attention = attention
    try:
        yield
    finally:
        _running.attention = None


def running() -> Attention:
    """What models attend through on this thread now."""
    attention: Attention = _running.attention
    return attention


def _attend_now(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: int, scoring: Scoring
) -> torch.Tensor:
    """`[1, heads, T, head_dim]` in, `[1, T, heads, head_dim]` out."""
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (queries, keys, values))
    return running().attend(layer, queries, keys, values, scoring)[None]


@torch.library.custom_op("baton::paged_attention", mutates_args=())
def _paged_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    return _attend_now(queries, keys, values, layer, Scoring(scaling, window, softcap))


@_paged_attention.register_fake
def _(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    return queries.new_empty(queries.transpose(1, 2).shape)


def scoring_of(
    module: torch.nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    others: dict[str, object],
) -> Scoring:
    """What the model passes is trusted, its attributes are not: some have a window and do not use it.

    Raises `ModelError` for what would change attention in a way that is not known here.
    """
    if unknown := {name for name, value in others.items() if value is not None} - _UNREAD:
        raise ModelError(f"{type(module).__name__} passes {', '.join(sorted(unknown))} to attention: not supported yet")
    if attention_mask is not None:
        raise ModelError(f"{type(module).__name__} brings an attention mask of its own: not supported yet")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise ModelError(f"{type(module).__name__} attends in both directions: not supported")
    if dropout:
        raise ModelError(f"{type(module).__name__} drops attention out ({dropout}): the model is in training mode")
    if getattr(module, "layer_idx", None) is None:
        raise ModelError(f"{type(module).__name__} does not say which layer it is: not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Scoring(scale, sliding_window, softcap)


def attend_in_pages(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The attention function of `ATTENTION`."""
    scoring = scoring_of(module, query, attention_mask, scaling, dropout, sliding_window, softcap, others)
    layer: int = module.layer_idx  # type: ignore[assignment]  # scoring_of has seen to it
    if not torch.compiler.is_compiling():
        return _attend_now(query, key, value, layer, scoring), None
    output = _paged_attention(query, key, value, layer, scoring.scaling, scoring.window, scoring.softcap)
    return output, None


# Without a mask function of the same name, models make no mask at all, which is what packed steps need.
AttentionInterface.register(ATTENTION, attend_in_pages)
