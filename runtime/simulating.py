"""The settings of a simulated model: how long its steps take, and how large its pages are."""

from typing import Annotated, Literal

from pydantic import Field

from runtime.section import Section

Milliseconds = Annotated[float, Field(ge=0)]
_Size = Annotated[int, Field(ge=1, le=65_535)]


class SimulatedKvConfig(Section):
    """How large the KV of a token is: `[2, kv_heads, head_dim]` elements of `dtype` in each of `layers` layers, which
    take no memory where they lie and really travel."""

    layers: Annotated[int, Field(ge=1, le=4096)] = 1
    kv_heads: _Size = 1
    head_dim: Annotated[int, Field(ge=2, le=65_535, multiple_of=2)] = 2
    dtype: Literal["float32", "bfloat16"] = "float32"


class SimulatedConfig(Section):
    """A model without tensors: a step lasts `base_ms`, plus `token_ms` a token and `sequence_ms` a sequence in it.
    Without `kv` its KV is a few bytes a token."""

    max_tokens: int = Field(default=131_072, ge=2)
    base_ms: Milliseconds = 0.0
    token_ms: Milliseconds = 0.0
    sequence_ms: Milliseconds = 0.0
    kv: SimulatedKvConfig | None = None
