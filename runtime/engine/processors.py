"""Bends the logits of the rows that ask for it: bias, penalties, grammars, bans. All such rows of a step at once.

The order of acting is documented in runtime/domain/sampling.py. What forbids comes last here, which changes nothing:
whatever is added to or multiplied with the -infinity of a banned token leaves it there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.domain.sampling import NO_PENALTIES
from runtime.engine.core import SampleRow
from runtime.engine.history import History


@dataclass(frozen=True, slots=True)
class Bent:
    """`logits` `[m, vocab]` are a copy of the rows in question, `places` says where in it each row of the step is, and
    `best` are the most likely tokens `[m]`."""

    places: dict[int, int]
    logits: torch.Tensor
    best: list[int]


def bend(logits: torch.Tensor, rows: Sequence[SampleRow]) -> Bent | None:
    """None when no row asks for it. `logits` `[n, vocab]` stay as they are."""
    chosen = [(place, row, row.history) for place, row in enumerate(rows) if row.history is not None]
    if not chosen:
        return None
    bent = torch.stack([logits[place] for place, _, _ in chosen])
    histories = [history for _, _, history in chosen]
    _add_bias(bent, histories)
    _penalize(bent, [(row, history) for _, row, history in chosen])
    _constrain(bent, histories)
    _ban(bent, [history.forbidden() for history in histories])
    return Bent({place: index for index, (place, _, _) in enumerate(chosen)}, bent, bent.max(dim=-1).indices.tolist())


def _add_bias(logits: torch.Tensor, histories: Sequence[History]) -> None:
    chosen = [(index, each) for index, each in enumerate(histories) if each.biased]
    if not chosen:
        return
    place = _rows([(index, len(each.biased)) for index, each in chosen])
    tokens = torch.cat([torch.frombuffer(each.biased, dtype=torch.int64) for _, each in chosen])
    biases = torch.cat([torch.frombuffer(each.biases, dtype=torch.float32) for _, each in chosen])
    device = logits.device
    logits.index_put_((place.to(device), tokens.to(device)), biases.to(device), accumulate=True)


def _penalize(logits: torch.Tensor, rows: Sequence[tuple[SampleRow, History]]) -> None:
    chosen = [
        (index, row.sampling.penalties, history)
        for index, (row, history) in enumerate(rows)
        if history.tokens and row.sampling.penalties != NO_PENALTIES
    ]
    if not chosen:
        return
    device = logits.device
    sizes = torch.tensor([len(history.tokens) for _, _, history in chosen])
    place = _rows([(index, len(history.tokens)) for index, _, history in chosen]).to(device)
    tokens = torch.cat([torch.frombuffer(each.tokens, dtype=torch.int64) for _, _, each in chosen]).to(device)
    counts = torch.cat([torch.frombuffer(each.counts, dtype=torch.float32) for _, _, each in chosen]).to(device)
    amounts = torch.tensor([(each.repetition, each.presence, each.frequency) for _, each, _ in chosen])
    repetition, presence, frequency = amounts.repeat_interleave(sizes, dim=0).to(device).unbind(dim=1)
    scores = logits[place, tokens]
    scores = torch.where(scores > 0, scores / repetition, scores * repetition)
    logits[place, tokens] = scores - frequency * counts - presence * (counts > 0)


def _constrain(logits: torch.Tensor, histories: Sequence[History]) -> None:
    masks = [
        (index, mask)
        for index, each in enumerate(histories)
        if each.constraint is not None and (mask := each.constraint.mask()) is not None
    ]
    if not masks:
        return
    device = logits.device
    packed = torch.frombuffer(bytearray().join(mask for _, mask in masks), dtype=torch.uint8).view(len(masks), -1)
    bits = (packed.to(device)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    allowed = bits.flatten(start_dim=1)[:, : logits.shape[1]].bool()
    place = torch.tensor([index for index, _ in masks], device=device)
    logits[place] = logits[place].masked_fill(~allowed, -math.inf)


def _ban(logits: torch.Tensor, forbidden: Sequence[list[int]]) -> None:
    """Bans that would leave a row without any token are void."""
    if not any(forbidden):
        return
    place = _rows([(index, len(tokens)) for index, tokens in enumerate(forbidden)]).to(logits.device)
    tokens = torch.tensor([token for each in forbidden for token in each], device=logits.device)
    before = logits[place, tokens]
    logits[place, tokens] = -math.inf
    void = logits.amax(dim=-1).isneginf()[place]
    logits[place[void], tokens[void]] = before[void]


def _rows(sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Each index as often as its size says."""
    return torch.tensor([index for index, _ in sizes]).repeat_interleave(torch.tensor([size for _, size in sizes]))
