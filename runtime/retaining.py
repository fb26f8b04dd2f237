"""The settings of what workers keep for sessions that are away."""

from typing import Self

from pydantic import Field, model_validator

from runtime.section import Section


class RetentionConfig(Section):
    """KV of sessions that ask for it is kept in the pool of the worker that ran their last turn, before all other KV
    that nobody uses: in up to `worker_share` of the pool, for one tenant up to `tenant_share` of it, 0 for nothing.
    After a turn that called tools for no longer than `tools_s`, after an answer no longer than `answer_s`."""

    worker_share: float = Field(default=0.5, ge=0, le=1)
    tenant_share: float = Field(default=0.5, ge=0, le=1)
    tools_s: float = Field(default=600.0, ge=0, le=604_800)
    answer_s: float = Field(default=600.0, ge=0, le=604_800)

    @model_validator(mode="after")
    def _within_all(self) -> Self:
        if self.tenant_share > self.worker_share:
            raise ValueError(f"tenant_share ({self.tenant_share}) must be at most worker_share ({self.worker_share})")
        return self
