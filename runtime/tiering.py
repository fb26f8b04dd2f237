"""The settings of what is kept behind the workers' pools."""

from pathlib import Path
from typing import Self

from pydantic import Field

from runtime.mirroring import MirrorConfig
from runtime.retaining import RetentionConfig
from runtime.section import Section

LOCAL = "local"
_BUCKET = "s3://"


class TiersConfig(Section):
    """Pages of KV kept behind each worker's pool, so that what was computed once is not computed again.

    `host_mib` of each worker's host memory hold copies of pages; 0 for none: a pool on the CPU is host memory itself,
    and better larger. `cold` is where pages are kept beyond the life of a worker: `local` for a folder in the mesh's
    state, a folder, or s3://bucket/prefix with the credentials of the environment; null for nowhere. All workers of a
    mesh share it, nobody else does. It has up to `cold_gib`, and keeps nothing that was not used for `keep_h` hours.
    Pages are copied out of a pool at up to `write_mib_s`. Fewer than `least_tokens` are computed rather than loaded,
    and so is what is not there within `patience_s`."""

    host_mib: int = Field(default=0, ge=0)
    cold: str | None = Field(default=None, pattern=r"^(local|s3://[^/@]+(/.*)?|[^:]+)$")
    cold_gib: float = Field(default=8.0, gt=0)
    keep_h: float = Field(default=72.0, gt=0)
    write_mib_s: float = Field(default=128.0, gt=0)
    least_tokens: int = Field(default=64, ge=1)
    patience_s: float = Field(default=2.0, gt=0, le=60)

    @property
    def bucket(self) -> bool:
        return self.cold is not None and self.cold.startswith(_BUCKET)

    def anchored(self, folder: Path) -> Self:
        """With a folder that counts from `folder`."""
        if self.cold is None or self.cold == LOCAL or self.bucket:
            return self
        return self.model_copy(update={"cold": str(folder / Path(self.cold).expanduser())})


class KvKeepingConfig(Section):
    """How KV is kept."""

    tiers: TiersConfig = TiersConfig()
    mirror: MirrorConfig = MirrorConfig()
    retention: RetentionConfig = RetentionConfig()

    def anchored(self, folder: Path) -> Self:
        return self.model_copy(update={"tiers": self.tiers.anchored(folder)})
