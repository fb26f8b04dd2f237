"""What each rank holds of a model: every number of it somewhere, heads whole; refusals by the name of the field."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
)

from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.loading import load_model, load_share
from runtime.model.share import HeadSplit, shares_of
from runtime.model.synthetic import make_checkpoint

SIZES: dict[str, Any] = dict(
    vocab_size=512,
    hidden_size=96,
    intermediate_size=36,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=64,
    pad_token_id=None,
)
Make = Callable[[PreTrainedConfig], Checkpoint]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    def make(config: PreTrainedConfig) -> Checkpoint:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        make_checkpoint(tmp_path / "model", config)
        return open_checkpoint(tmp_path / "model")

    return make


@pytest.mark.parametrize(
    ("kv_heads", "ranks", "held", "tellers"),
    [
        (8, 2, [(0, 4), (4, 8)], [0, 1]),
        (2, 2, [(0, 1), (1, 2)], [0, 1]),
        (1, 2, [(0, 1), (0, 1)], [0]),
        (2, 6, [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (1, 2)], [0, 3]),
        (3, 1, [(0, 3)], [0]),
    ],
)
def test_heads_are_held_whole_and_each_is_told_by_one(
    kv_heads: int, ranks: int, held: list[tuple[int, int]], tellers: list[int]
) -> None:
    split = HeadSplit(kv_heads, ranks)
    found = [split.of(rank) for rank in range(ranks)]
    assert [(heads.start, heads.stop) for heads in found] == held
    assert list(split.tellers) == tellers
    assert [head for rank in tellers for head in range(*held[rank])] == list(range(kv_heads))


@pytest.mark.parametrize("config", [LlamaConfig, Phi3Config, MixtralConfig])
def test_the_ranges_of_all_ranks_are_the_whole_of_a_tensor(config: type[PreTrainedConfig], made: Make) -> None:
    checkpoint = made(config(**SIZES))
    shares = shares_of(checkpoint, 3)
    divided = 0
    for tensor in checkpoint.tensors.values():
        parts = [share.part(tensor) for share in shares]
        if parts[0] is None:
            assert parts == [None] * 3
            continue
        divided += 1
        taken = [place for part in parts if part for each in part.ranges for place in range(each.start, each.stop)]
        assert sorted(taken) == list(range(tensor.shape[parts[0].axis])), tensor.name
        assert all(part is not None and math.prod(part.shape) * 3 == math.prod(tensor.shape) for part in parts)
    whole = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    assert divided >= 4
    assert whole / 3 < shares[0].weights(checkpoint) < whole


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (
            LlamaConfig(**SIZES),
            2,
            r"2 ranks cannot share its 6 attention heads with 3 for .*; 1, 3, 6 can",
        ),
        (LlamaConfig(**SIZES), 4, r"4 ranks cannot share its 6 attention heads"),
        (
            LlamaConfig(**SIZES | {"intermediate_size": 35}),
            3,
            r"cannot share the 35 rows or columns of .*_proj",
        ),
        (Olmo2Config(**SIZES), 3, r"Olmo2ForCausalLM .* cannot be split: its \w_norm spans all heads"),
        (GPT2Config(vocab_size=512, n_embd=64, n_layer=1, n_head=4), 2, r"cannot be split: it has no layer"),
        (
            GPTNeoXConfig(**{name: size for name, size in SIZES.items() if name != "num_key_value_heads"}),
            2,
            r"cannot be split: it has no layer that is known to make queries",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_the_name_of_the_field(
    config: PreTrainedConfig, ranks: int, message: str, made: Make
) -> None:
    with pytest.raises(ModelError, match=rf"^engine\.tensor_parallel: .*{message}"):
        shares_of(made(config), ranks)


def test_an_architecture_that_nobody_planned_to_split_is_refused(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = made(LlamaConfig(**SIZES))
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", None)
    with pytest.raises(ModelError, match=r"^engine\.tensor_parallel: LlamaForCausalLM .* transformers has no plan"):
        load_share(checkpoint, torch.float32, "eager", shares_of(checkpoint, 3)[0])


def test_a_rank_reads_its_part_and_zeros_for_what_another_adds(made: Make) -> None:
    checkpoint = made(LlamaConfig(**SIZES, attention_bias=True))
    whole = load_model(checkpoint, torch.float32, "eager").state_dict()
    for rank, share in enumerate(shares_of(checkpoint, 3)):
        held = load_share(checkpoint, torch.float32, "eager", share).state_dict()
        keys, output = (f"model.layers.0.self_attn.{name}_proj" for name in "ko")
        torch.testing.assert_close(held[f"{keys}.weight"], whole[f"{keys}.weight"][16 * rank :][:16])
        torch.testing.assert_close(held[f"{output}.weight"], whole[f"{output}.weight"][:, 32 * rank :][:, :32])
        assert bool(held[f"{output}.bias"].any()) == (rank == 0)
        torch.testing.assert_close(held["model.norm.weight"], whole["model.norm.weight"])
