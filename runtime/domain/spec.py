"""What a model is to the mesh: shapes, limits and fingerprints. Never its weights."""

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model as engines declare it and the mesh compares it.

    `layers`, `kv_heads` and `head_dim` shape a KV page's canonical payload `[layer, k|v, token, kv_head, head_dim]`
    of `dtype`; `max_tokens` bounds prompt plus output; `kv_fingerprint` says which KV pages are interchangeable,
    `serving_fingerprint` adds tokenizer and chat template. Both are lowercase hex.
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    vocab: int
    max_tokens: int
    page_tokens: int
    kv_fingerprint: str
    serving_fingerprint: str

    @property
    def token_bytes(self) -> int:
        """Bytes of KV that one token takes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def page_bytes(self) -> int:
        return self.token_bytes * self.page_tokens
