"""The weights that training starts from: heads that already copy what followed an earlier occurrence.

From random weights most of an hour on two cores passes before such heads appear; training shapes them from here on.
"""

from itertools import pairwise

import torch
from transformers import LlamaForCausalLM

_COMMON_SHARE = 0.7
_SHIFT_SHARPNESS = 0.5
_SHIFT_PAIRS = 8
_MATCH_SHARPNESS = 2.0
_MATCHED_FROM_PAIR = 10
_MATCHED_TOKENS = 3
_SHIFT_GAIN = 1.0
_COPY_GAIN = 4.0
_CONFIDENCE = 3.0


@torch.no_grad()
def plant_induction_heads(model: LlamaForCausalLM) -> None:
    """Layer 0: head h writes the token h + 1 places back into a subspace of its own. Layer 1: every head attends where
    the three tokens before are the last three now, the more the better, and copies the token it finds there.
    """
    shifting, matching = (layer.self_attn for layer in model.model.layers[:2])
    hidden, heads, size = model.config.hidden_size, model.config.num_attention_heads, shifting.head_dim
    model.model.norm.weight.fill_(_CONFIDENCE)
    frequencies = model.model.rotary_emb.inv_freq
    slow = torch.tensor([row for row in range(size) if row % (size // 2) >= _MATCHED_FROM_PAIR])
    common, token, blocks = _share_out(model.model.embed_tokens.weight, len(slow), heads)
    scale = float(model.model.embed_tokens.weight.norm(dim=1).mean()) / hidden**0.5
    seen = token[: len(slow)]
    for head in range(heads):
        start = head * size
        rows = slice(start, start + size)
        query, key = _shift(frequencies, head + 1)
        shifting.q_proj.weight[rows] = torch.outer(query, common)
        shifting.k_proj.weight[rows] = torch.outer(key, common)
        shifting.v_proj.weight[start : start + len(slow)] = seen
        shifting.o_proj.weight[:, rows] = 0.0
        shifting.o_proj.weight[:, start : start + len(slow)] = _SHIFT_GAIN * scale * blocks[head].T
        matching.q_proj.weight[rows] = 0.0
        matching.k_proj.weight[rows] = 0.0
        # Each place is turned in its own way, so that one place hardly ever matches another.
        for now, before in pairwise([seen, *blocks[:_MATCHED_TOKENS]]):
            turn = torch.linalg.qr(torch.randn(len(slow), len(slow))).Q
            matching.q_proj.weight[start + slow] += _MATCH_SHARPNESS * turn @ now
            matching.k_proj.weight[start + slow] += _MATCH_SHARPNESS * turn @ before
        matching.v_proj.weight[rows] = token[:size]
        matching.o_proj.weight[:, rows] = _COPY_GAIN * scale * token[:size].T


def _share_out(
    embedding: torch.Tensor, block: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Divides the hidden space in orthogonal parts and moves the embedding to its own.

    Gives the direction that all tokens share, by which a head can look at a fixed distance whatever the tokens are;
    the directions (rows) in which tokens differ; and `blocks` free subspaces of `block` directions each.
    """
    hidden = embedding.shape[1]
    basis = torch.linalg.qr(torch.randn(hidden, hidden)).Q.T
    common, free, token = basis[0], basis[1 : 1 + blocks * block], basis[1 + blocks * block :]
    norm = embedding.norm(dim=1).mean()
    moved = torch.nn.functional.normalize(embedding @ token.T @ token, dim=1)
    embedding.copy_(norm * (moved + _COMMON_SHARE * common))
    return common, token, list(free.split(block))


def _shift(frequencies: torch.Tensor, distance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The query and the key, before rotation, whose product is greatest `distance` tokens apart."""
    pairs = len(frequencies)
    used = _SHIFT_SHARPNESS**0.5 * (torch.arange(pairs) < _SHIFT_PAIRS)
    angles = distance * frequencies
    return torch.cat([used * angles.cos(), -used * angles.sin()]), torch.cat([used, torch.zeros(pairs)])
