"""What a checkpoint is to the mesh, read from its files alone: without torch, so that a gateway can do without it.

Sizes are those that the configuration declares, completed and contradicted by the shapes of the stored tensors. An
engine holds the model to them once it is loaded (`runtime.engine.runner`).
"""

import re

from runtime.domain.spec import ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, Checkpoint
from runtime.model.fingerprint import kv_fingerprint, serving_fingerprint
from runtime.model.shards import StoredTensor
from runtime.model.support import text_config

DTYPES = ("float32", "bfloat16")
# Every size by all the names that architectures have for it.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads",)
_HEAD_DIM = ("head_dim", "kv_channels")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_MAX_TOKENS = ("max_position_embeddings", "n_positions", "max_seq_len")
_VOCAB = ("vocab_size",)
# Where the language model's tensors are, and no others: a model that sees has layers and heads for that too.
_PREFIX = r"^(?:(?:model|language_model|transformer|gpt_neox)\.)*"
LAYERS_OF_TEXT = _PREFIX + r"layers\."
_FIRST_LAYER = LAYERS_OF_TEXT + r"0\.(?:self_attn|attention)\."
_KEYS = re.compile(_FIRST_LAYER + r"k_proj\.weight$")
_FUSED = re.compile(_FIRST_LAYER + r"(?:qkv_proj|query_key_value)\.weight$")
_KEY_NORM = re.compile(_FIRST_LAYER + r"k_norm\.weight$")
_EMBEDDING = re.compile(_PREFIX + r"(?:embed_tokens|embed_in|wte)\.weight$")


def checkpoint_spec(
    checkpoint: Checkpoint,
    *,
    name: str,
    dtype: str,
    page_tokens: int,
    quantized: bool = False,
    max_tokens: int | None = None,
) -> ModelSpec:
    """`dtype` of the computation and its KV; `quantized`, with weights of 8 bits; `max_tokens` None is the model's own.
    Reads all weights once, for the fingerprint.

    Raises `ModelError` for a setting that cannot be, and for a configuration without a size or with a wrong one.
    """
    if dtype not in DTYPES:
        raise ModelError(f"{name}: dtype {dtype} is not supported; there are {', '.join(DTYPES)}")
    if quantized and dtype != "bfloat16":
        raise ModelError(f"{name}: weights of 8 bits are multiplied in bfloat16 only; dtype is {dtype}")
    limit = _size(checkpoint, _MAX_TOKENS)
    if max_tokens is not None and not 1 < max_tokens <= limit:
        raise ModelError(f"{name}: max_tokens must be 2 to {limit}, got {max_tokens}")
    kv_heads, head_dim = key_shape(checkpoint)
    kv = kv_fingerprint(checkpoint, quantized=quantized)
    return ModelSpec(
        name=name,
        layers=_size(checkpoint, _LAYERS),
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        vocab=_vocab(checkpoint),
        max_tokens=max_tokens or limit,
        page_tokens=page_tokens,
        kv_fingerprint=kv,
        serving_fingerprint=serving_fingerprint(checkpoint, kv),
    )


def _vocab(checkpoint: Checkpoint) -> int:
    embedding = _tensor(checkpoint, _EMBEDDING)
    if embedding is not None and _declared(checkpoint, _VOCAB) is None:
        return embedding.shape[0]
    return _size(checkpoint, _VOCAB)


def key_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """`[kv_heads, head_dim]` of one token's keys in one layer."""
    keys, fused = _tensor(checkpoint, _KEYS), _tensor(checkpoint, _FUSED)
    if keys is not None:
        return _divided(checkpoint, keys)
    heads = _size(checkpoint, _HEADS)
    kv_heads = _declared(checkpoint, _KV_HEADS) or (1 if checkpoint.config.get("multi_query") else heads)
    head_dim = _declared(checkpoint, _HEAD_DIM) or _size(checkpoint, _HIDDEN) // heads
    if fused is not None and fused.shape[0] != (heads + 2 * kv_heads) * head_dim:
        raise ModelError(
            f"{checkpoint.path}: {fused.shape[0]} rows of {fused.name} make no {heads} heads of {head_dim} for queries "
            f"and {kv_heads} each for keys and values"
        )
    return kv_heads, head_dim


def _divided(checkpoint: Checkpoint, keys: StoredTensor) -> tuple[int, int]:
    """By the tensor that makes the keys, because what a configuration leaves out differs by architecture."""
    rows, kv_heads, head_dim = keys.shape[0], _declared(checkpoint, _KV_HEADS), _declared(checkpoint, _HEAD_DIM)
    if kv_heads is not None:
        head_dim = head_dim or rows // kv_heads
    else:
        head_dim = head_dim or _implied_head_dim(checkpoint)
        kv_heads = rows // head_dim
    if kv_heads * head_dim != rows:
        raise ModelError(f"{checkpoint.path}: {rows} rows of {keys.name} make no {kv_heads} heads of {head_dim}")
    return kv_heads, head_dim


def _implied_head_dim(checkpoint: Checkpoint) -> int:
    """Of a configuration that says neither how many heads there are for keys nor how long they are."""
    norm = _tensor(checkpoint, _KEY_NORM)
    if norm is not None and _declared(checkpoint, _HEADS) is None:
        return norm.shape[0]
    return _size(checkpoint, _HIDDEN) // _size(checkpoint, _HEADS)


def _tensor(checkpoint: Checkpoint, name: re.Pattern[str]) -> StoredTensor | None:
    return next((tensor for own, tensor in checkpoint.tensors.items() if name.search(own)), None)


def _declared(checkpoint: Checkpoint, keys: tuple[str, ...]) -> int | None:
    """The first of `keys` that the configuration has."""
    config = text_config(checkpoint.config)
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise _wrong(checkpoint, keys, value)
    return value


def _size(checkpoint: Checkpoint, keys: tuple[str, ...]) -> int:
    value = _declared(checkpoint, keys)
    if value is None:
        raise _wrong(checkpoint, keys, value)
    return value


def _wrong(checkpoint: Checkpoint, keys: tuple[str, ...], value: object) -> ModelError:
    return ModelError(f"{checkpoint.path / CONFIG_FILE}: {keys[0]} must be a whole number above 0, got {value!r}")
