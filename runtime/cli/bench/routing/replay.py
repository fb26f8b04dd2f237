"""Replays a trace on a simulated cluster under one way of placing, with what a router really knows: loads and pages as
they were told a moment ago."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from runtime.cli.bench.routing.cluster import TOKEN_BYTES, Cluster, Node, Served, names_of_blocks, prefill_ms
from runtime.cli.bench.routing.trace import BLOCK, Ask
from runtime.domain.holdings import Tier
from runtime.domain.messages import View
from runtime.domain.routing import Asked, Placement, Route, Router, Routing, candidate
from runtime.ids import BootId, TenantId
from runtime.kv_settings import REMOTE_MIN_TOKENS
from runtime.router.cost import CostRouter, Model
from runtime.router.holders import Held, held_pages
from runtime.router.index import PageIndex

ORACLE = "oracle"
PLACEMENTS = (*(placement.value for placement in Placement), ORACLE)
PREFILL_WORKERS = 8
DECODE_WORKERS = 8
ROOM = 4000
VIEW_S = 0.25
PAGES_S = 0.1
_TENANT = TenantId("trace")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`hit` is the share of all prompt tokens that were held by whoever prefilled, `busy` that of the prefill workers'
    time."""

    hit: float
    mean_ttft_ms: float
    p90_ttft_ms: float
    busy: float


class _Given:
    """Knows the page ids of the prompt that is asked for now."""

    def __init__(self, index: PageIndex) -> None:
        self.blocks: Sequence[int] = ()
        self._index = index

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        return held_pages(self._index, names_of_blocks(self.blocks), self._index.known(boots), BLOCK)


class _Oracle:
    """Sees every cache as it is, and the prompt: takes whoever has most of it, whatever his queue; of equals the one
    that is free first."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ask: Ask

    def see(self, view: View, now: float) -> None:
        """It needs no view."""

    def route(self, asked: Asked, now: float) -> Route | None:
        def best(nodes: list[Node]) -> Node:
            return min(nodes, key=lambda node: (-node.held(self.ask), node.free_at))

        decode, prefill = best(self._cluster.decode), best(self._cluster.prefill)
        alone = decode.held(self.ask) > prefill.held(self.ask)
        return Route(decode.shown(now), () if alone else (candidate(prefill.shown(now)),), 1)


def stretched(asks: Sequence[Ask], utilization: float) -> list[Ask]:
    """The same requests, as far apart as makes the prefill workers so busy, were nothing cached."""
    work_s = sum(prefill_ms(0, ask.tokens) for ask in asks) / 1000 / PREFILL_WORKERS
    span = max(asks[-1].at - asks[0].at, 1e-9)
    pace = work_s / utilization / span
    return [Ask(ask.at * pace, ask.tokens, ask.answer, ask.blocks) for ask in asks]


class Replay:
    def __init__(self, placement: str) -> None:
        self._cluster = Cluster(PREFILL_WORKERS, DECODE_WORKERS, ROOM)
        self._index = PageIndex()
        self._given = _Given(self._index)
        self._oracle = _Oracle(self._cluster)
        self._router = self._made(placement)
        # What comes later: at which second, in which order, whose cache takes what, or whose news arrive.
        self._later: list[tuple[float, int, Node, Ask | tuple[list[int], list[int]]]] = []
        self._order = count()
        self._in_flight: dict[BootId, list[float]] = {}
        self._seen = -VIEW_S

    def run(self, asks: Sequence[Ask]) -> Outcome:
        served = [self._serve(ask) for ask in asks]
        ttft = np.array([each.ttft_ms for each in served])
        tokens = sum(each.tokens for each in served)
        span_ms = (asks[-1].at - asks[0].at) * 1000 * PREFILL_WORKERS
        busy = sum(node.busy_ms for node in self._cluster.nodes.values()) / span_ms
        hit = sum(each.hit for each in served) / tokens
        return Outcome(hit, float(ttft.mean()), float(np.quantile(ttft, 0.9)), busy)

    def _made(self, placement: str) -> Routing:
        if placement == ORACLE:
            return self._oracle
        if placement == Placement.COST:
            return CostRouter(Model(TOKEN_BYTES, BLOCK), self._given)
        return Router(Placement(placement))

    def _serve(self, ask: Ask) -> Served:
        now = ask.at
        self._arrive(now)
        if now - self._seen >= VIEW_S:
            self._seen = now
            workers = tuple(node.shown(now) for node in self._cluster.nodes.values())
            self._router.see(View(1, 1, workers), now)
        self._oracle.ask = ask
        self._given.blocks = ask.blocks[: ask.tokens // BLOCK]
        flying = {boot: sum(until > now for until in ends) for boot, ends in self._in_flight.items()}
        route = self._router.route(Asked(_TENANT, range(ask.tokens), ask.answer, flying), now)
        assert route is not None, "there are decode workers"
        decode = self._cluster.nodes[route.worker.boot]
        least = route.remote_min_tokens or REMOTE_MIN_TOKENS
        boots = [each.boot for each in route.candidates]
        worker, served = self._cluster.serve(ask, now, decode, boots, least)
        done = now + served.ttft_ms / 1000
        for node in {worker.boot: worker, decode.boot: decode}.values():
            heapq.heappush(self._later, (done, next(self._order), node, ask))
        ends = [until for until in self._in_flight.get(decode.boot, ()) if until > now]
        self._in_flight[decode.boot] = [*ends, done + ask.answer * 0.016]
        return served

    def _arrive(self, now: float) -> None:
        """Caches take what was computed meanwhile, and the directory hears of it a moment later."""
        while self._later and self._later[0][0] <= now:
            at, _, node, what = heapq.heappop(self._later)
            if isinstance(what, Ask):
                heapq.heappush(self._later, (at + PAGES_S, next(self._order), node, node.keep(what)))
                continue
            stored, removed = what
            number = self._index.number(node.boot)
            self._index.removed(number, names_of_blocks(removed), Tier.POOL)
            self._index.stored(number, names_of_blocks(stored), Tier.POOL)
