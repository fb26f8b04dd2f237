"""What a checkpoint is to the mesh, read from its files alone: without torch, so that a gateway can do without it."""

from runtime.domain.spec import ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, Checkpoint
from runtime.model.fingerprint import kv_fingerprint, serving_fingerprint

DTYPES = ("float32", "bfloat16")
_FIRST_KEYS = "model.layers.0.self_attn.k_proj.weight"


def checkpoint_spec(
    checkpoint: Checkpoint, *, name: str, dtype: str, page_tokens: int, max_tokens: int | None = None
) -> ModelSpec:
    """`dtype` of the computation and its KV; `max_tokens` None is the model's own. Reads all weights once, for the
    fingerprint.

    Raises `ModelError` for a setting that cannot be, and for a configuration without a size.
    """
    if dtype not in DTYPES:
        raise ModelError(f"{name}: dtype {dtype} is not supported; there are {', '.join(DTYPES)}")
    limit = _size(checkpoint, "max_position_embeddings")
    if max_tokens is not None and not 1 < max_tokens <= limit:
        raise ModelError(f"{name}: max_tokens must be 2 to {limit}, got {max_tokens}")
    kv_heads = _size(checkpoint, "num_key_value_heads", "num_attention_heads")
    kv = kv_fingerprint(checkpoint)
    return ModelSpec(
        name=name,
        layers=_size(checkpoint, "num_hidden_layers"),
        kv_heads=kv_heads,
        head_dim=_head_dim(checkpoint, kv_heads),
        dtype=dtype,
        vocab=_size(checkpoint, "vocab_size"),
        max_tokens=max_tokens or limit,
        page_tokens=page_tokens,
        kv_fingerprint=kv,
        serving_fingerprint=serving_fingerprint(checkpoint, kv),
    )


def _size(checkpoint: Checkpoint, *keys: str) -> int:
    """The first of `keys` that the configuration has."""
    value = next((checkpoint.config[key] for key in keys if checkpoint.config.get(key) is not None), None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{checkpoint.path / CONFIG_FILE}: {keys[0]} must be a whole number above 0, got {value!r}")
    return value


def _head_dim(checkpoint: Checkpoint, kv_heads: int) -> int:
    """By the tensor that makes the keys, because what a configuration leaves out differs by architecture."""
    keys = checkpoint.tensors.get(_FIRST_KEYS)
    if keys is None:
        raise ModelError(f"{checkpoint.path}: there is no tensor {_FIRST_KEYS}")
    if keys.shape[0] % kv_heads:
        raise ModelError(f"{checkpoint.path}: {keys.shape[0]} rows of {_FIRST_KEYS} make no {kv_heads} heads")
    return keys.shape[0] // kv_heads
