"""The section of a worker on a Neuron core: what is compiled for it, and how the core is reached."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from runtime.section import Section


class BucketConfig(Section):
    """A graph that is compiled: up to `tokens` new tokens, after up to `past_pages` pages of what came before."""

    tokens: int = Field(ge=1, le=65_536)
    past_pages: int = Field(ge=0, le=65_536)


class NeuronConfig(Section):
    """How a worker uses its Neuron core. Every bucket is compiled before it serves, and the longest past of a bucket
    bounds its context. `stand_in` runs the same graphs on the CPU, where there is no such device. `api` is the vendor's
    own PyTorch device, or the `lite` one of vLLM's plugin; `logical_nc` says how many physical cores make a logical
    one, by default as the machine is set; `cache` is where compiled graphs are kept."""

    buckets: tuple[BucketConfig, ...] = Field(
        default=(
            BucketConfig(tokens=512, past_pages=0),
            BucketConfig(tokens=512, past_pages=64),
            BucketConfig(tokens=512, past_pages=256),
        ),
        min_length=1,
    )
    stand_in: bool = False
    api: Literal["torch", "lite"] = "torch"
    logical_nc: Literal[1, 2] | None = None
    cache: Path | None = None

    @model_validator(mode="after")
    def _has_a_past(self) -> Self:
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError("buckets must differ, one is there twice")
        if not any(bucket.past_pages for bucket in self.buckets):
            raise ValueError("buckets: one at least must have past_pages, or nothing longer than a step could run")
        return self
