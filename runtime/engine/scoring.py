"""What logits say of the tokens of a prompt. A pure function of each row; untempered, as a sampled token's."""

from collections.abc import Sequence

import torch

from runtime.domain.scoring import PromptScores, Score
from runtime.domain.steps import Chunk
from runtime.errors import EngineFailed


def score(logits: torch.Tensor, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, list[PromptScores]]:
    """Of `logits`, `[n, vocab]` float32 of all rows that `chunks` want: those to sample from, and the scores of each
    chunk that wants them. Raises `EngineFailed` when a row to be scored holds a NaN."""
    if not any(chunk.score for chunk in chunks):
        return logits, []
    sampled: list[int] = []
    scored: list[PromptScores] = []
    first = 0
    for chunk in chunks:
        end = first + chunk.logits
        if chunk.sample:
            sampled.append(end - 1)
        if chunk.score is not None:
            scored.append(_scores(logits[first : first + len(chunk.score.targets)], chunk.score))
        first = end
    return logits[torch.tensor(sampled, dtype=torch.int64)], scored


def _scores(logits: torch.Tensor, wanted: Score) -> PromptScores:
    """`logits` `[targets, vocab]`."""
    logprobs = torch.log_softmax(logits, dim=-1)
    mine = logprobs.gather(1, torch.tensor(wanted.targets, device=logits.device)[:, None])
    if torch.isnan(mine).any():
        raise EngineFailed("the model gave logits that are not finite")
    ranks = (logprobs > mine).sum(dim=-1) + 1
    top = min(wanted.top, logits.shape[1])
    values, tokens = logprobs.topk(top, dim=-1) if top else (logprobs[:, :0], logprobs[:, :0].long())
    return PromptScores(
        top,
        tuple(mine[:, 0].tolist()),
        tuple(ranks.tolist()),
        tuple(tokens.flatten().tolist()),
        tuple(values.flatten().tolist()),
    )
