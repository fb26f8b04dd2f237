"""What a model is to the mesh: shapes, limits and fingerprints. Never its weights."""

import enum
from dataclasses import dataclass, replace
from itertools import pairwise

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Kind(enum.Enum):
    """What a layer keeps of each token: a key and a value for each head, or one latent vector for all heads (MLA)."""

    KV = "kv"
    LATENT = "latent"


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose part of a page looks alike: `layers` are their numbers in the model, ascending.

    A token takes `[sides, heads, head_dim]` elements in each: two sides of keys and values, or one of a latent, whose
    `heads` is 1. `window` is how many tokens back the layers attend, the newest included; 0, all.
    """

    layers: tuple[int, ...]
    heads: int
    head_dim: int
    kind: Kind = Kind.KV
    window: int = 0

    @property
    def sides(self) -> int:
        return 2 if self.kind is Kind.KV else 1

    @property
    def rows(self) -> int:
        """How often a token's heads come in a payload: once for each layer and side."""
        return len(self.layers) * self.sides

    @property
    def elements(self) -> int:
        """Elements that one token takes."""
        return self.rows * self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model as engines declare it and the mesh compares it.

    `layers`, `kv_heads` and `head_dim` shape a KV page's canonical payload `[layer, k|v, token, kv_head, head_dim]`
    of `dtype`, unless the layers differ: then `groups` says how, and a page's payload is those of its groups, one after
    the other. `max_tokens` bounds prompt plus output; `kv_fingerprint` says which KV pages are interchangeable,
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
    groups: tuple[LayerGroup, ...] = ()

    @property
    def page_groups(self) -> tuple[LayerGroup, ...]:
        """The groups of its layers, at least one."""
        return self.groups or (LayerGroup(tuple(range(self.layers)), self.kv_heads, self.head_dim),)

    @property
    def token_bytes(self) -> int:
        """Bytes of KV that one token takes."""
        if self.groups:
            return sum(group.elements for group in self.groups) * DTYPE_BYTES[self.dtype]
        return self.layers * 2 * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def page_bytes(self) -> int:
        return self.token_bytes * self.page_tokens

    def cut(self, groups: int) -> "ModelSpec":
        """The same with its layers in so many groups, no more than it has layers, each of layers that follow each
        other: so what is computed first can travel first. As it is where its layers are in groups already."""
        count = min(groups, self.layers)
        if count == 1 or self.groups:
            return self
        ends = [self.layers * number // count for number in range(count + 1)]
        layers = (tuple(range(first, end)) for first, end in pairwise(ends))
        return replace(self, groups=tuple(LayerGroup(each, self.kv_heads, self.head_dim) for each in layers))
