"""How fast pages of KV come out of a tier into a pool, one after the other on one thread, with nobody else there."""

import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from runtime.domain.pages import ROOT
from runtime.domain.readers import NOBODY
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame
from runtime.domain.tiers import Wanted
from runtime.engine.kv_tensors import KVTensors
from runtime.ids import PageId
from runtime.kv.tiers.arena import Arena
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import open_objects
from runtime.kv.tiers.pages import PageCodec

_SALT = b"a tenant of a bench"
_ROUNDS = 3


def host_rate(spec: ModelSpec, pages: int) -> float:
    """Bytes of payload a second: copied out of an arena, checked, written into a pool."""
    codec = PageCodec(spec)
    arena = Arena(codec, pages * codec.page_bytes)
    frames = _frames(spec, pages)
    for frame in frames:
        arena.put(frame, ROOT, frozenset({NOBODY}))
    return _rate(spec, [frame.page for frame in frames], arena.get)


def cold_rate(spec: ModelSpec, pages: int, folder: Path) -> float:
    """Bytes of payload a second: read from a folder, opened, checked, written into a pool."""
    cold = ColdTier(open_objects(str(folder), patience_s=60.0), PageCodec(spec), 1 << 40, 3600.0)
    frames = _frames(spec, pages)
    for frame in frames:
        cold.write(frame, Wanted(frame.page, ROOT, frame.index, _SALT))
    return _rate(spec, [frame.page for frame in frames], lambda page: cold.read(page, ROOT, _SALT))


def _frames(spec: ModelSpec, pages: int) -> list[Frame]:
    content = secrets.token_bytes(spec.page_bytes)
    return [Frame(PageId(secrets.token_bytes(16)), place, spec.page_tokens, content) for place in range(pages)]


def _rate(spec: ModelSpec, pages: list[PageId], read: Callable[[PageId], Frame | None]) -> float:
    pool = KVTensors(spec, len(pages))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for place, page in enumerate(pages):
            frame = read(page)
            assert frame is not None, "it was written just now"
            pool.write_page(place, frame.payload, frame.valid_tokens)
        seconds.append(time.perf_counter() - began)
    return len(pages) * spec.page_bytes / statistics.median(seconds)
