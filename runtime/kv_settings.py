"""The sections about KV: how workers keep it, and how it goes from one to another."""

from typing import Literal

from pydantic import Field

from runtime.section import Section

Dtype = Literal["float32", "bfloat16"]
REMOTE_MIN_TOKENS = 64
"""Where a prompt is prefilled, as long as nothing was measured."""


class KvConfig(Section):
    """How these workers keep KV, where that differs from others. `dtype` of their computation and of their KV is by
    default that of `model`. On the CPU it may lie as another engine keeps it, so that a mesh of unlike engines can be
    tried on one machine: in `layout`, and in blocks of `block_tokens` tokens, by default as many as a page has."""

    dtype: Dtype | None = None
    layout: Literal[
        "baton", "slots", "nxdi", "nxdi_transposed", "nxdi_prefix", "nxdi_chunked", "vllm_neuron", "vllm_cuda"
    ] = "baton"
    block_tokens: int | None = Field(default=None, ge=1, le=65_536)

    def check_device(self, device: str) -> None:
        """Raises `ValueError` where the device has a layout of its own."""
        if device != "cpu" and (self.layout != "baton" or self.block_tokens is not None):
            raise ValueError(f"kv.layout and kv.block_tokens are for device cpu, not {device}")


class HandoffConfig(Section):
    """A prompt whose uncached part has `remote_min_tokens` or more is prefilled by a prefill worker, of which up to
    `transfers` are tried; without it, a prompt goes the way that takes less time by what was measured, and until enough
    was, 64 tokens are the bound. With `transport` auto pages travel through memory that workers of one host share, of
    each up to `staging_mib`, else by NIXL where both have it with the same `nixl_backend` (LIBFABRIC is for EFA), else
    by gRPC; nixl and grpc leave out what comes before. `wire` makes pages smaller for the way, with losses, so that
    answers may differ. They may also where a prefill worker computes in another data type than the decode worker:
    `dtypes` are those that are taken nevertheless, and rounded. With more than one of `layer_groups` a page travels as
    so many parts, the first while the last layers are computed: for KV that is large beside what computing it takes."""

    remote_min_tokens: int | None = Field(default=None, ge=1)
    transfers: int = Field(default=2, ge=1, le=16)
    transport: Literal["auto", "nixl", "grpc"] = "auto"
    nixl_backend: Literal["UCX", "LIBFABRIC"] = "UCX"
    staging_mib: int = Field(default=64, ge=1, le=65_536)
    wire: Literal["plain", "fp8", "fp8_448", "int8"] = "plain"
    dtypes: tuple[Dtype, ...] = ()
    layer_groups: int = Field(default=1, ge=1, le=256)
