"""A small model of every architecture that is proven: its own configuration class, shrunk until a prompt of two pages
crosses its windows and its patterns of layers."""

from collections.abc import Callable
from typing import Any

from transformers import (
    BertConfig,
    Cohere2Config,
    DiffLlamaConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JetMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

WINDOW = 40
_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def _rope(kind: str, theta: float = 10_000.0, **more: float) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": theta, **more}


_CLASSES_AND_SIZES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama3-rope": (LlamaConfig, dict(**_SIZES, head_dim=16, rope_parameters=_LLAMA3)),
    "llama-linear-mqa": (
        LlamaConfig,
        dict(**_SIZES | {"num_key_value_heads": 1}, head_dim=32, rope_parameters=_rope("linear", factor=4.0)),
    ),
    "llama-yarn-mha": (
        LlamaConfig,
        dict(**_SIZES | {"num_key_value_heads": 4}, rope_parameters=_YARN, attention_bias=True, mlp_bias=True),
    ),
    "qwen2-tied": (Qwen2Config, dict(**_SIZES, tie_word_embeddings=True)),
    "qwen2-windows": (
        Qwen2Config,
        dict(**_SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, rope_parameters=_YARN),
    ),
    "qwen3-tied": (Qwen3Config, dict(**_SIZES, head_dim=32, tie_word_embeddings=True)),
    "mistral": (MistralConfig, dict(**_SIZES, head_dim=16, sliding_window=WINDOW)),
    "gemma2": (
        Gemma2Config,
        dict(
            **_SIZES,
            head_dim=16,
            sliding_window=WINDOW,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=20.0,
            final_logit_softcapping=10.0,
        ),
    ),
    "gemma3": (
        Gemma3TextConfig,
        dict(
            **_SIZES | {"num_hidden_layers": 3},
            head_dim=16,
            sliding_window=WINDOW,
            sliding_window_pattern=2,
            query_pre_attn_scalar=24,
            rope_parameters={
                "sliding_attention": _rope("default"),
                "full_attention": _rope("linear", 1_000_000.0, factor=8.0),
            },
        ),
    ),
    "gemma3-nested": (
        Gemma3Config,
        dict(
            text_config=dict(
                **_SIZES, head_dim=16, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
            ),
            vision_config=dict(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            ),
            mm_tokens_per_image=1,
        ),
    ),
    "phi3": (Phi3Config, dict(**_SIZES, partial_rotary_factor=0.5)),
    "phi3-window": (Phi3Config, dict(**_SIZES, sliding_window=WINDOW)),
    "olmo2": (Olmo2Config, dict(**_SIZES)),
    "olmo3": (
        Olmo3Config,
        dict(
            **_SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], rope_parameters=_YARN
        ),
    ),
    "granite": (
        GraniteConfig,
        dict(**_SIZES, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.8, logits_scaling=2.0),
    ),
    "smollm3": (SmolLM3Config, dict(**_SIZES, no_rope_layer_interval=2)),
    "qwen2-moe": (Qwen2MoeConfig, dict(**_SIZES, **_EXPERTS, shared_expert_intermediate_size=32)),
    "qwen3-moe": (Qwen3MoeConfig, dict(**_SIZES, **_EXPERTS, head_dim=16)),
    "mixtral": (MixtralConfig, dict(**_SIZES, num_local_experts=4, sliding_window=WINDOW)),
    "cohere2": (
        Cohere2Config,
        dict(**_SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], logit_scale=0.25),
    ),
    "glm4": (Glm4Config, dict(**_SIZES, head_dim=16, partial_rotary_factor=0.5)),
    "starcoder2": (Starcoder2Config, dict(**_SIZES, sliding_window=WINDOW)),
    "gpt-neox": (
        GPTNeoXConfig,
        dict(**{name: size for name, size in _SIZES.items() if name != "num_key_value_heads"}, rotary_pct=0.25),
    ),
    "gpt2": (GPT2Config, dict(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=2048)),
}
# What no configuration says, with what Baton says when it is found out.
_REFUSED: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any], str]] = {
    "sinks": (
        GptOssConfig,
        dict(**_SIZES, head_dim=16, num_local_experts=4, sliding_window=WINDOW),
        "GptOssAttention passes s_aux to attention: not supported yet",
    ),
    "both directions": (
        BertConfig,
        {name: size for name, size in _SIZES.items() if name not in ("num_key_value_heads", "pad_token_id")},
        "attention mask is neither causal nor a sliding window",
    ),
    "a window that only the mask knows": (
        Qwen2MoeConfig,
        dict(**_SIZES, **_EXPERTS, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
        f"Qwen2MoeAttention masks a window of {WINDOW} tokens and passes None",
    ),
    "a mask of its own": (DogeConfig, dict(**_SIZES | {"pad_token_id": 0}), "brings an attention mask of its own"),
    "attention twice": (DiffLlamaConfig, _SIZES, "the model attends 4 times, but has 2 layers"),
    "more heads than declared": (
        JetMoeConfig,
        dict(**_SIZES, kv_channels=16, num_local_experts=4),
        "layer 0 has keys of 4 heads of 16, the configuration says 2 heads of 16",
    ),
}
ARCHITECTURES = tuple(_CLASSES_AND_SIZES)
REFUSED = {name: message for name, (_, _, message) in _REFUSED.items()}
# Of models whose first random weights say one token for ever.
SEEDS = {"llama-yarn-mha": 1, "qwen2-windows": 1}


def architecture(name: str) -> PreTrainedConfig:
    """A fresh configuration of one of `ARCHITECTURES` or `REFUSED`."""
    kind, sizes = _REFUSED[name][:2] if name in _REFUSED else _CLASSES_AND_SIZES[name]
    return kind(**sizes)
