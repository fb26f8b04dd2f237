"""What a model does that its configuration does not say, found out at load by running a few tokens. Keeps no KV.

A recorder stands where attention stands: it answers zeros and remembers what each layer asked for. With attention
silent, tokens must not know of each other at all; what still reaches from one to another would be in no page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from runtime.engine.attention import Scoring, attend_in_pages, attending, running
from runtime.errors import ModelError

PROBING = "baton_probing"
_TOKENS = 3
# How far apart the same token may come out in two steps of the same shape, relative; routing may round either way.
_APART = {torch.float32: 1e-3, torch.bfloat16: 0.1}
# A model's mask: of batch, head, query position and key position, whether the query sees the key.
_MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Call:
    layer: int
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class _Recorder:
    """`longest` bounds the positions that masks are asked about; `ends` `[T, hidden]` is what the layers make of the
    tokens in the end."""

    def __init__(self, longest: int) -> None:
        self.calls: list[_Call] = []
        self.ends = torch.empty(0)
        self._longest = longest
        self._masks: list[tuple[torch.Tensor, _MaskFunction]] = []

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        self.calls.append(_Call(layer, queries.clone(), keys.clone(), values.clone()))
        return torch.zeros_like(queries)

    def mask(self, mask_function: _MaskFunction) -> torch.Tensor:
        """Stands for a mask until `masked` sees it again."""
        mask = torch.zeros(1, 1, _TOKENS, _TOKENS)
        self._masks.append((mask, mask_function))
        return mask

    def masked(self, module: torch.nn.Module, mask: torch.Tensor | None, window: int | None) -> None:
        """Raises `ModelError` unless `mask` hides just what `window` says."""
        mask_function = next((known for own, known in self._masks if own is mask), None)
        if mask_function is None:
            raise ModelError(f"{type(module).__name__} brings an attention mask of its own: not supported yet")
        masked = _window_of(mask_function, self._longest)
        passed = None if window is None or window >= self._longest else window
        if masked != passed:
            raise ModelError(
                f"{type(module).__name__} masks a window of {masked} tokens and passes {passed}: not supported yet"
            )


def probe(model: PreTrainedModel, layers: int, kv_shape: tuple[int, int], longest: int) -> None:
    """`kv_shape` is that of one token's keys, `[kv_heads, head_dim]`; `longest` is the longest sequence to be run.

    Raises `ModelError` naming what the model does that Baton's attention and pages do not know. Call it without
    gradients.
    """
    implementation = model.config._attn_implementation
    model.set_attn_implementation(PROBING)
    try:
        first = max(0, longest - _TOKENS - 1)
        one = _record(model, (0, 1, 2), first, longest)
        other = _record(model, (3, 2, 4), first + 1, longest)
    finally:
        model.set_attn_implementation(implementation)
    _check_layers(one.calls, layers, kv_shape)
    far = _APART[model.dtype]
    if _apart(_row(one, 2), _row(other, 1)) > far:
        raise ModelError("what a token becomes depends on its neighbours beside attention: not supported")


def _record(model: PreTrainedModel, tokens: Sequence[int], first: int, longest: int) -> _Recorder:
    recorder = _Recorder(longest)
    with attending(recorder):
        output = model.base_model(
            input_ids=torch.tensor([tokens], device=model.device),
            position_ids=torch.arange(first, first + len(tokens), device=model.device)[None],
            use_cache=False,
        )
    recorder.ends = output.last_hidden_state[0]
    return recorder


def _check_layers(calls: Sequence[_Call], layers: int, kv_shape: tuple[int, int]) -> None:
    seen = [call.layer for call in calls]
    if missing := sorted(set(range(layers)) - set(seen)):
        raise ModelError(f"layers {missing} of the model do not attend through Baton")
    if len(seen) > layers:
        raise ModelError(f"the model attends {len(seen)} times, but has {layers} layers")
    for call in calls:
        for name, tensor in (("keys", call.keys), ("values", call.values)):
            if tuple(tensor.shape[1:]) != kv_shape:
                raise ModelError(
                    f"layer {call.layer} has {name} of {_heads(tensor.shape[1:])}, the configuration says "
                    f"{_heads(kv_shape)}: heads that differ are not supported"
                )


def _heads(shape: Sequence[int]) -> str:
    return f"{shape[0]} heads of {shape[1]}"


def _row(step: _Recorder, row: int) -> torch.Tensor:
    """All that one token brought to attention, in all layers, and what became of it."""
    parts = [part[row].flatten() for call in step.calls for part in (call.queries, call.keys, call.values)]
    return torch.cat([*parts, step.ends[row]]).float()


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm().clamp_min(torch.finfo(torch.float32).tiny))


def _window_of(mask_function: _MaskFunction, longest: int) -> int | None:
    """Of how many last tokens a mask shows all and of the others none; None when that is no bound up to `longest`.

    Raises `ModelError` for any other mask.
    """
    last = longest - 1
    window = _shown(mask_function, last)
    for position in {0, 1, last // 2, last - 1, window - 1, window, window + 1} & set(range(longest)):
        if _shown(mask_function, position) != min(position + 1, window):
            raise ModelError("the model's attention mask is neither causal nor a sliding window: not supported")
    return None if window >= longest else window


def _shown(mask_function: _MaskFunction, position: int) -> int:
    """How many keys, up to its own, the query at `position` sees."""
    zero, keys = torch.tensor(0), torch.arange(position + 2)
    shown = mask_function(zero, zero, torch.tensor(position), keys).expand(position + 2)
    count = int(shown.sum())
    if not count or not bool(shown[position + 1 - count : position + 1].all()):
        raise ModelError("the model's attention mask is neither causal nor a sliding window: not supported")
    return count


def _mask(*, mask_function: _MaskFunction, **_: object) -> torch.Tensor:
    recorder = running()
    assert isinstance(recorder, _Recorder)
    return recorder.mask(mask_function)


def _attention_function(
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
    recorder = running()
    assert isinstance(recorder, _Recorder)
    recorder.masked(module, attention_mask, sliding_window)
    return attend_in_pages(module, query, key, value, None, scaling, dropout, sliding_window, softcap, **others)


AttentionInterface.register(PROBING, _attention_function)
AttentionMaskInterface.register(PROBING, _mask)
