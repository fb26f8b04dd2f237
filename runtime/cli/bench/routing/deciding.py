"""Times decisions in a large mesh: many workers, an index of millions of pages, long prompts whose page ids are
given."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.cli.bench.routing.cluster import PROFILE, TOKEN_BYTES
from runtime.domain.holdings import Tier
from runtime.domain.messages import View, Worker
from runtime.domain.pages import Occupancy
from runtime.domain.routing import DECODE, PREFILL, Asked
from runtime.domain.steps import Load
from runtime.ids import BootId, TenantId, WorkerId
from runtime.router.cost import CostRouter, Model
from runtime.router.holders import Held, held_pages
from runtime.router.index import Names, PageIndex

TOKENS = 120_000
PAGE_TOKENS = 32
# Every worker has so many pages of the system prompt that all prompts begin with, and of each prompt that many workers
# have ever more.
_SHARED_PAGES = 32
_HOLDERS = 8
_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Decided:
    """Milliseconds of each decision, and of taking in a view."""

    decide_ms: list[float]
    view_ms: float
    bytes_per_page: float
    fill_s: float


class _Given:
    def __init__(self, index: PageIndex, prompts: Sequence[Names]) -> None:
        self.prompt = 0
        self._index = index
        self._prompts = prompts
        self._boots: Sequence[BootId] = ()
        self._numbers = index.known(())

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        if boots is not self._boots:
            self._boots, self._numbers = boots, self._index.known(boots)
        return held_pages(self._index, self._prompts[self.prompt], self._numbers, PAGE_TOKENS)


def decide(workers: int, pages: int, decisions: int) -> Decided:
    """Half of the `workers` prefill; together they hold `pages` pages."""
    rng = np.random.default_rng(1)
    boots = [BootId(f"worker-{number}") for number in range(workers)]
    began = time.perf_counter()
    index, prompts = _filled(rng, boots, pages)
    fill_s = time.perf_counter() - began
    given = _Given(index, prompts)
    router = CostRouter(Model(TOKEN_BYTES, PAGE_TOKENS), given)
    view = View(1, 1, tuple(_worker(boot, number, rng) for number, boot in enumerate(boots)))
    began = time.perf_counter()
    router.see(view, 0.0)
    view_ms = (time.perf_counter() - began) * 1000
    asked = Asked(TenantId("bench"), range(TOKENS), 256, {})
    times = list[float]()
    for number in range(decisions + 10):
        given.prompt = number % _PROMPTS
        began = time.perf_counter()
        route = router.route(asked, float(number))
        times.append((time.perf_counter() - began) * 1000)
        assert route is not None, "there are decode workers"
    return Decided(times[10:], view_ms, index.bytes / index.pages, fill_s)


def _filled(rng: np.random.Generator, boots: Sequence[BootId], pages: int) -> tuple[PageIndex, list[Names]]:
    index, count = PageIndex(), TOKENS // PAGE_TOKENS
    shared = _names(rng, _SHARED_PAGES)
    prompts = [np.concatenate([shared, _names(rng, count - _SHARED_PAGES)]) for _ in range(_PROMPTS)]
    for prompt in prompts:
        for number, at in enumerate(rng.choice(len(boots), _HOLDERS, replace=False)):
            index.stored(index.number(boots[at]), prompt[: count * (number + 1) // _HOLDERS], Tier.POOL)
    left = pages - index.pages - len(boots) * _SHARED_PAGES
    for boot in boots:
        other = _names(rng, max(left // len(boots), 0))
        index.stored(index.number(boot), np.concatenate([shared, other]), Tier.POOL)
    return index, prompts


def _names(rng: np.random.Generator, count: int) -> Names:
    return rng.integers(0, (1 << 64) - 1, count, dtype=np.uint64, endpoint=True)


def _worker(boot: BootId, number: int, rng: np.random.Generator) -> Worker:
    role = PREFILL if number % 2 else DECODE
    pages = Occupancy(int(rng.integers(5000, 10_000)), 0, 2000, 5000)
    load = Load(int(rng.integers(0, 24)), 0, 0, int(rng.integers(0, 20_000)), pages)
    address = f"host-{number // 8}:1"
    return Worker(
        WorkerId(boot), boot, role, address, "m", "k", "s", 1 << 20, PAGE_TOKENS, "", load, profile=PROFILE
    )  # fmt: skip
