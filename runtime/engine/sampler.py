"""Chooses the next tokens from logits. A pure function of each row's logits, its sampling, history and position.

Randomness is counter-based: one uniform number in [0, 1) with 53 bits, out of BLAKE2b(seed, position), looks up the
cumulative distribution in float64. So neither the batch, nor the worker, nor what was sampled before changes a draw.
"""

import hashlib
import math
import struct
from collections.abc import Sequence

import torch

from runtime.domain.sequence import Sampled, Sampling
from runtime.engine.core import SampleRow
from runtime.engine.processors import bend
from runtime.errors import EngineFailed

# Where a nucleus, and what is typical, nearly always ends; only when it does not is more of the vocabulary sorted.
_HEAD = 512
# Below it a draw is greedy in all but name, and float32 would divide by nothing.
_COLDEST = 1e-6


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
    """One token for each row of `logits`, `[n, vocab]` float32. Raises `EngineFailed` when a row holds a NaN."""
    if not rows:
        return []
    best, greedy = logits.max(dim=-1)
    if not torch.isfinite(best).all():
        raise EngineFailed("the model gave logits that are not finite")
    tokens = greedy.tolist()
    bent = bend(logits, rows)
    for place, row in enumerate(rows):
        mine = logits[place]
        if bent is not None and (index := bent.places.get(place)) is not None:
            mine, tokens[place] = bent.logits[index], bent.best[index]
        if row.sampling.temperature > 0:
            tokens[place] = _draw(mine, row.sampling, uniform(row.sampling.seed, row.position))
    return [
        Sampled(token) if row.sampling.logprobs is None else _with_logprobs(logits[place], token, row.sampling.logprobs)
        for place, (token, row) in enumerate(zip(tokens, rows, strict=True))
    ]


def uniform(seed: int, position: int) -> float:
    """In [0, 1), a function of both and of nothing else."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"baton sampling").digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _draw(logits: torch.Tensor, sampling: Sampling, point: float) -> int:
    """Temperature, then those not too far below the most likely (`min_p`), then the `top_k` most likely, then of those
    the fewest that hold `top_p` of the probability, then of those the most typical."""
    scores = (logits - logits.max()) / max(sampling.temperature, _COLDEST)
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -math.inf)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _look_up(_typical(scores.exp(), sampling.typical_p), point)
    weights, tokens = _most_likely(scores, sampling.top_k, sampling.top_p)
    return int(tokens[_look_up(_typical(weights, sampling.typical_p), point)])


def _typical(weights: torch.Tensor, mass: float) -> torch.Tensor:
    """Zero for all but the fewest tokens that hold `mass` of the probability, taken in the order of how near their
    surprise is to the entropy (Meister et al., Locally Typical Sampling)."""
    if mass == 1:
        return weights
    shares = weights.double() / weights.sum(dtype=torch.float64)
    surprise = -shares.log()
    entropy = (shares * surprise).nansum()
    nearness = -(surprise - entropy).abs()
    count = min(_HEAD, len(shares))
    _, order = _ordered(nearness, count)
    while shares[order].sum() < mass and count < len(shares):
        count = min(8 * count, len(shares))
        _, order = _ordered(nearness, count)
    order = order[: int((shares[order].cumsum(0) < mass).sum()) + 1]
    kept = torch.zeros_like(weights)
    kept[order] = weights[order]
    return kept


def _most_likely(scores: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights left by both limits, in falling order, and their tokens; of equals the lower token comes first."""
    size = len(scores)
    count = min(top_k or _HEAD, size)
    weights, tokens = _heaviest(scores, count)
    needed = top_p * (weights if top_k else scores.exp()).sum(dtype=torch.float64)
    while weights.sum(dtype=torch.float64) < needed and count < size and not top_k:
        count = min(8 * count, size)
        weights, tokens = _heaviest(scores, count)
    kept = int((weights.cumsum(0, dtype=torch.float64) < needed).sum()) + 1
    return weights[:kept], tokens


def _heaviest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, tokens = _ordered(scores, count)
    return values.exp(), tokens


def _ordered(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` greatest in falling order. Stable, which topk alone is not: it may pick any among equals."""
    least = scores.topk(count, sorted=False).values.min()
    candidates = (scores >= least).nonzero()[:, 0]
    order = scores[candidates].sort(descending=True, stable=True)
    return order.values[:count], candidates[order.indices[:count]]


def _look_up(weights: torch.Tensor, point: float) -> int:
    """The first place whose cumulative weight is above `point` of the whole."""
    cumulative = weights.cumsum(0, dtype=torch.float64)
    # Rounding can lift the product to the whole itself, which nothing is above.
    below = min(point * float(cumulative[-1]), math.nextafter(float(cumulative[-1]), 0))
    return int(torch.searchsorted(cumulative, below, right=True))


def _with_logprobs(logits: torch.Tensor, token: int, count: int) -> Sampled:
    """Of the distribution as the model gave it, before temperature and limits."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = _ordered(logprobs, min(count, len(logprobs))) if count else (logprobs[:0], logprobs[:0].long())
    return Sampled(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
