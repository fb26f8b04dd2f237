"""Makes small checkpoints with random weights, for tests and benches: real shapes and files, no knowledge.

The same arguments make the same files. The weights are scaled so that greedy output wanders instead of repeating.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

_START, _END = "<|im_start|>", "<|im_end|>"
_SPECIAL = (_START, _END)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' ~ message.role) }}"
    "{% endif %}"
    f"{_START}{{{{ message.role }}}}\n{{{{ message.content }}}}{_END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{_START}assistant\n{{% endif %}}"
)
_EMBEDDING = re.compile(r"embed|\.wte\.|\.wpe\.")
_SHARPENING = re.compile(r"\.[qk]_norm\.")
_QWEN: dict[int, Callable[..., PreTrainedConfig]] = {2: Qwen2Config, 3: Qwen3Config}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder-only transformer with grouped-query attention."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 128
    vocab: int = 512
    max_tokens: int = 4096


TINY = Shape()
SHAPE_146M = Shape(12, 1024, heads=16, kv_heads=8, head_dim=64, intermediate=2816, vocab=4096, max_tokens=8192)


def make_llama(
    path: Path,
    shape: Shape = TINY,
    *,
    tied: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> None:
    """A Llama checkpoint with a byte-level tokenizer and a chat template, in the new directory `path`."""
    config = LlamaConfig(**_sizes(shape, theta=500_000.0), tie_word_embeddings=tied)
    make_checkpoint(path, config, seed=seed, dtype=dtype, max_shard_size=max_shard_size)


def make_qwen(
    path: Path,
    shape: Shape = TINY,
    *,
    generation: int = 3,
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> None:
    """A Qwen2 (biased projections) or Qwen3 (normed queries and keys) checkpoint, as `make_llama` makes them."""
    config = _QWEN[generation](**_sizes(shape, theta=1_000_000.0), tie_word_embeddings=tied)
    make_checkpoint(path, config, seed=seed, dtype=dtype, max_shard_size=max_shard_size)


def make_llama_146m(path: Path, *, seed: int = 0) -> None:
    """146 million parameters in bfloat16: the shape that the benches run."""
    make_llama(path, SHAPE_146M, tied=True, seed=seed, dtype=torch.bfloat16)


def _sizes(shape: Shape, theta: float) -> dict[str, Any]:
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_tokens,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def make_checkpoint(
    path: Path,
    config: PreTrainedConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> None:
    """A checkpoint of any causal language model that transformers knows, as `make_llama` makes them.

    Gives `config` the tokenizer's end.
    """
    transformers_logging.disable_progress_bar()
    tokenizer = _train_tokenizer(config.get_text_config().vocab_size)
    config.bos_token_id, config.eos_token_id = None, tokenizer.token_to_id(_END)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    _randomize(model, seed)
    path.mkdir(parents=True)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=config.get_text_config().max_position_embeddings,
    ).save_pretrained(path)


@torch.no_grad()
def _randomize(model: PreTrainedModel, seed: int) -> None:
    """Layers outweigh the embedding in the residual stream, so that the next token is rarely the last one again, and
    attention is sharp, so that it depends on which tokens came and not on their average."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            scale = 0.05 if _EMBEDDING.search(name) else 3.0 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.05, generator=generator)
        else:
            parameter.fill_(3.0 if _SHARPENING.search(name) else 1.0)
    for buffer in model.buffers():
        buffer.zero_()


def _train_tokenizer(vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(vocab), trainer)
    assert tokenizer.get_vocab_size() == vocab, "the corpus is too small for this vocabulary"
    return tokenizer


def _sentences(vocab: int) -> Iterator[str]:
    """Words out of syllables, some far more frequent than others, as many as the vocabulary has room for."""
    source = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(vocab)]
    weights = [1 / (place + 10) for place in range(vocab)]
    for _ in range(vocab):
        yield " ".join(source.choices(words, weights, k=12)) + "."
