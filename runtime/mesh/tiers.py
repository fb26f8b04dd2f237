"""What is behind the pool of a worker, as its configuration says: running for as long as a context is open."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.clock import Clock
from runtime.config import Config
from runtime.domain.steps import Copy
from runtime.kv.tiers.arena import Arena
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import open_objects
from runtime.kv.tiers.pages import PageCodec
from runtime.kv.tiers.tiers import Changed, PageTiers, TierSettings
from runtime.ports import Engine, Tiers
from runtime.roles.tierless import TIERLESS
from runtime.tiering import LOCAL, TiersConfig

_MIB = 1 << 20
_GIB = 1 << 30
_FOLDER = "kv"


@asynccontextmanager
async def running_tiers(config: Config, engine: Engine, clock: Clock, changed: Changed) -> AsyncIterator[Tiers]:
    """`changed` hears what comes into tiers and leaves them. Raises `StartError` when there can be no such store. One
    that does not answer is none of that."""
    settings, codec = config.kv.tiers, PageCodec(engine.spec)
    host = Arena(codec, settings.host_mib * _MIB) if settings.host_mib else None
    cold = _cold(config, settings, codec)
    if host is None and cold is None:
        yield TIERLESS
        return
    told = TierSettings(settings.least_tokens, settings.patience_s, settings.write_mib_s * _MIB)
    tiers = PageTiers(engine.spec, host, cold, told, clock, lambda pages: engine.tell(Copy(pages)), changed)
    async with tiers.running():
        yield tiers


def _cold(config: Config, settings: TiersConfig, codec: PageCodec) -> ColdTier | None:
    if settings.cold is None:
        return None
    where = str(config.state / _FOLDER) if settings.cold == LOCAL else settings.cold
    objects = open_objects(where, settings.patience_s)
    return ColdTier(objects, codec, round(settings.cold_gib * _GIB), settings.keep_h * 3600)
