"""Places a turn where it costs the least, in milliseconds by what each worker was measured to take. Never asks anybody.

With D a decode worker, P a prefill worker, T the line of their prefill and n the tokens of the prompt:

    here       queue(D) + T_D(n) - T_D(held)  and as much again for every turn that decodes beside it
    elsewhere  queue(P) + T_P(n) - T_P(held)  and what no computation hides of moving what D lacks
    both       and steps for the tokens that follow, and the wait for pages or for a place in the batch, where D is full

Whoever computes makes others wait who come after: so what is computed counts for them as well, and a short queue is no
reason to compute anew what another worker has. On a decode worker it counts for one more at least, even where nobody
decodes yet: it is for decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from runtime.domain.holdings import Tier
from runtime.domain.messages import PrefillCandidate, View
from runtime.domain.routing import (
    DECODE,
    PREFILL,
    Asked,
    Estimate,
    Explained,
    Placement,
    Reason,
    Route,
    Router,
    candidate,
    staying,
)
from runtime.ids import BootId
from runtime.router.curves import Floats, Ints
from runtime.router.fleet import Fleet, numbers
from runtime.router.holders import Held

# A ticket, a call, a commit.
_HANDOFF_MS = 2.0
# Pages move while the next chunk of so many tokens is computed.
_CHUNK = 512
# What a turn is expected to say, at the most.
_ANSWER = 256
# How many prefill workers are weighed against every decode worker, and named as candidates.
_CANDIDATES = 4
# Of a prompt, what the worker of the turn before it has, where nothing is known yet.
_NEAR_SHARE = 0.5
# How many wait for what is computed, and come later for it: on workers that are two thirds busy, two.
_BEHIND = 2
# To weigh a prompt of fewer tokens costs more than it could save, where steps take as long on all, or nearly so.
_SHORT = 64
_ALIKE = 1.25
_NEVER = (1 << 32) - 1
_TIE = 1e-6
# Decode workers that an explanation tells of, each with two ways to prefill.
_TOLD = 256


class Knows(Protocol):
    """Who holds which pages."""

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        """None when nothing is known of them."""


@dataclass(frozen=True, slots=True)
class Model:
    """What has to be known of the served model: bytes of KV that a token takes, tokens of a page."""

    token_bytes: int
    page_tokens: int


@dataclass(frozen=True, slots=True)
class _Own:
    """Milliseconds of each for what it lacks of a prompt; of these `loaded` are for fetching from the slower memory
    `tier`. These two are None where no worker has any of it in slower memory."""

    ms: Floats
    loaded: Floats | None = None
    tier: Ints | None = None

    def split(self, number: int) -> tuple[float, float, str]:
        """Milliseconds that one worker computes, that it fetches, and from which tier."""
        if self.loaded is None or self.tier is None or not self.tier[number]:
            return float(self.ms[number]), 0.0, ""
        loaded = float(self.loaded[number])
        return float(self.ms[number]) - loaded, loaded, (Tier(int(self.tier[number])).name or "").lower()


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A turn on every decode worker. `best` are the prefill workers weighed, `by` each of them for each."""

    held: Ints
    queue: Floats
    own: _Own
    others: Floats
    wait: Floats
    decode: Floats
    best: Ints
    by: Floats
    prefill_held: Ints
    prefill_queue: Floats
    prefill_own: _Own
    moved: Floats
    local: Floats
    remote: Floats
    total: Floats

    def pick(self, number: int) -> int:
        """Which of `best` goes with a decode worker."""
        return int(self.by[:, number].argmin())


class CostRouter:
    """`runtime.domain.routing.Routing`. As long as no worker was measured, the least loaded is taken; and for a prompt
    so short that there is nothing to find, where all decode alike."""

    def __init__(self, model: Model, holders: Knows, *, fixed: bool = False) -> None:
        """`fixed`: where a prompt is prefilled is up to the decode worker's setting."""
        self._model = model
        self._holders = holders
        self._fixed = fixed
        self._by_load = Router(Placement.LEAST_LOADED)
        self._decode = Fleet((), None, 0.0)
        self._prefill = Fleet((), None, 0.0)
        self._boots: tuple[BootId, ...] = ()
        self._measured = self._alike = False
        self._turn = 0

    def see(self, view: View, now: float) -> None:
        self._by_load.see(view, now)
        decode, prefill = staying(view, DECODE), staying(view, PREFILL)
        told = [[worker.profile.prefill for worker in workers] for workers in (decode, prefill)]
        self._decode = Fleet(decode, self._decode, now, otherwise=told[1])
        self._prefill = Fleet(prefill, self._prefill, now, otherwise=told[0])
        lines = self._decode.decode
        self._measured = lines is not None and self._decode.prefill is not None
        self._alike = lines is not None and bool((lines.max(axis=0) <= _ALIKE * lines.min(axis=0)).all())
        self._boots = tuple([worker.boot for worker in (*decode, *prefill)])

    def route(self, asked: Asked, now: float) -> Route | None:
        if not self._measured or (self._alike and len(asked.tokens) < _SHORT):
            return self._by_load.route(asked, now)
        weighed = self._weigh(asked, now)
        chosen = self._choose(weighed)
        if chosen is None:
            return None
        self._turn += 1
        self._book(weighed, chosen, now)
        least_remote = None if self._fixed else self._least_remote(weighed, chosen, len(asked.tokens))
        return Route(
            self._decode.workers[chosen],
            self._candidates(weighed, chosen),
            least_remote,
            self._estimate(weighed, chosen, local=bool(weighed.local[chosen] <= weighed.remote[chosen])),
        )

    def explain(self, asked: Asked, now: float) -> Explained:
        """A short prompt is weighed as well, though it goes by load."""
        loaded = self._by_load.explain(asked, now)
        if not self._measured:
            return replace(loaded, reason=Reason.UNMEASURED)
        weighed = self._weigh(asked, now)
        chosen = self._choose(weighed)
        costs = () if chosen is None else tuple(self._ways(weighed, chosen))
        if self._alike and len(asked.tokens) < _SHORT:
            return Explained(loaded.worker, Reason.SHORT, costs)
        return Explained(None if chosen is None else self._decode.workers[chosen].id, Reason.COST, costs)

    def _choose(self, weighed: _Weighed) -> int | None:
        least = float(weighed.total.min())
        if least == np.inf:
            return None
        # Equal workers are used equally.
        equal = np.flatnonzero(weighed.total <= least + _TIE)
        return int(equal[self._turn % len(equal)])

    def _ways(self, weighed: _Weighed, chosen: int) -> list[Estimate]:
        """The cheapest first; the chosen worker's before those of its equals."""
        finite = (
            int(each) for each in np.argsort(weighed.total, kind="stable")[:_TOLD] if weighed.total[each] < np.inf
        )
        order = [chosen, *(each for each in finite if each != chosen)]
        by = (True, False) if len(weighed.best) else (True,)
        ways = [self._estimate(weighed, each, local=local) for each in order for local in by]
        equal = min(way.total_ms for way in ways) + _TIE
        return sorted(ways, key=lambda way: max(way.total_ms, equal))

    def _weigh(self, asked: Asked, now: float) -> _Weighed:
        decode, n = self._decode, len(asked.tokens)
        has, prefill_has = self._held(asked, n)
        held, prefill_held = has.pool, prefill_has.pool
        own = self._own(decode, n, has)
        depth = self._depth(asked)
        step = decode.step(depth + 1)
        more = min(asked.more, _ANSWER)
        queue = decode.queue(now)
        others = own.ms * (np.maximum(depth, 1) + _BEHIND)
        wait = self._wait(n + more - held, step * more)
        local = queue + own.ms + others
        best, by, moved, prefill_queue, prefill_own = self._elsewhere(n, held, prefill_has, now)
        least = by.min(axis=0) if len(best) else np.full(len(decode), np.inf)
        total = np.minimum(local, least) + wait + step * (more + 1)
        for each in numbers(decode, asked.exclude):
            total[each] = np.inf
        return _Weighed(
            held, queue, own, others, wait, step * (more + 1), best, by,
            prefill_held, prefill_queue, prefill_own, moved, local, least, total,
        )  # fmt: skip

    def _held(self, asked: Asked, n: int) -> tuple[Held, Held]:
        """What each decode worker and each prefill worker has; the prompt's last token is always computed."""
        known = self._holders.held(asked, self._boots)
        if known is None:
            nothing = np.zeros(len(self._boots), np.int64)
            known = Held(nothing, nothing, nothing)
        near = self._decode.number.get(asked.near) if asked.near is not None else None
        if near is not None and not known.pool[near]:
            likely = np.zeros(len(self._boots), np.int64)
            likely[near] = int(n * _NEAR_SHARE)
            known = known.at_least(likely)
        known = known.at_most(n - 1)
        return known.part(slice(None, len(self._decode))), known.part(slice(len(self._decode), None))

    def _own(self, fleet: Fleet, n: int, has: Held) -> _Own:
        """Computed, or fetched where that is faster."""
        whole = fleet.took(n)
        own = _Own(whole - fleet.each_took(has.pool) if has.pool.any() else whole)
        for tier, held, speed in ((Tier.HOST, has.host, fleet.host_gb), (Tier.COLD, has.cold, fleet.cold_gb)):
            if held is not has.pool:
                loaded = (held - has.pool) * (self._model.token_bytes / 1e6) / speed
                ms = loaded + whole - fleet.each_took(held)
                faster = (held > has.pool) & (ms < own.ms)
                own = _Own(
                    np.where(faster, ms, own.ms),
                    np.where(faster, loaded, 0.0 if own.loaded is None else own.loaded),
                    np.where(faster, int(tier), 0 if own.tier is None else own.tier),
                )
        return own

    def _depth(self, asked: Asked) -> Ints:
        """Turns on each, by what it reported, or by what this gateway has there if that is more."""
        depth = self._decode.depth.copy()
        for boot, count in asked.in_flight.items():
            number = self._decode.number.get(boot)
            if number is not None and count > depth[number]:
                depth[number] = count
        return depth

    def _wait(self, tokens: Ints, answer_ms: Floats) -> Floats:
        """For pages that those who run will free as they end, and behind those who wait already."""
        decode = self._decode
        short = np.maximum(-(-tokens // self._model.page_tokens) - decode.room, 0) * (decode.total > 0)
        pages = short / np.maximum(decode.owned, 1)
        ahead = decode.waiting / np.maximum(decode.running, 1)
        waits: Floats = (pages + ahead) * answer_ms
        return waits

    def _elsewhere(self, n: int, held: Ints, has: Held, now: float) -> tuple[Ints, Floats, Floats, Floats, _Own]:
        """The best prefill workers, and for each of them with each decode worker: milliseconds until the prompt's KV
        is there, and how many of these only moved pages; and of each prefill worker the queue and its own time."""
        prefill = self._prefill
        if not len(prefill) or prefill.prefill is None:
            nothing = np.zeros((0, len(held)))
            return np.zeros(0, dtype=np.int64), nothing, nothing, np.zeros(0), _Own(np.zeros(0))
        own = self._own(prefill, n, has)
        queue = prefill.queue(now)
        computed = queue + own.ms * (1 + _BEHIND)
        best = np.argsort(computed, kind="stable")[:_CANDIDATES] if len(prefill) > 1 else np.zeros(1, dtype=np.int64)
        near = prefill.host[best, None] == self._decode.host[None]
        speed = np.where(near, prefill.near_gb[best, None], prefill.far_gb[best, None])
        bytes_ms = (n - held) * (self._model.token_bytes / 1e6)
        whole = bytes_ms[None] / speed
        chunks = np.maximum(np.ceil((n - has.pool[best]) / _CHUNK), 1.0)[:, None]
        exposed = np.maximum(whole - own.ms[best, None], whole / chunks) + _HANDOFF_MS
        return best, computed[best, None] + exposed, exposed, queue, own

    def _book(self, weighed: _Weighed, chosen: int, now: float) -> None:
        if weighed.local[chosen] <= weighed.remote[chosen]:
            self._decode.book(chosen, now, float(weighed.own.ms[chosen]))
        else:
            best = int(weighed.best[weighed.pick(chosen)])
            self._prefill.book(best, now, float(weighed.prefill_own.ms[best]))

    def _candidates(self, weighed: _Weighed, chosen: int) -> tuple[PrefillCandidate, ...]:
        if not len(weighed.best):
            return ()
        first = weighed.pick(chosen)
        order = [first, *(each for each in range(len(weighed.best)) if each != first)]
        return tuple(candidate(self._prefill.workers[int(weighed.best[each])]) for each in order)

    def _least_remote(self, weighed: _Weighed, chosen: int, n: int) -> int | None:
        """The uncached suffix from which on the prefill worker is the faster one. Both ways grow with its length, each
        from what it costs before the first token."""
        if not len(weighed.best):
            return None
        pick = weighed.pick(chosen)
        best = int(weighed.best[pick])
        suffix = n - int(weighed.held[chosen])
        here = float(weighed.own.ms[chosen] + weighed.others[chosen]) / suffix
        moving = float(weighed.moved[pick, chosen]) - _HANDOFF_MS
        there = (float(weighed.prefill_own.ms[best]) * (1 + _BEHIND) + moving) / suffix
        ahead = float(weighed.prefill_queue[best]) + _HANDOFF_MS - float(weighed.queue[chosen])
        if here <= there:
            return _NEVER if ahead >= 0 else 1
        return min(max(int(ahead / (here - there)), 1), _NEVER)

    def _estimate(self, weighed: _Weighed, number: int, *, local: bool) -> Estimate:
        pick = 0 if local else weighed.pick(number)
        best = 0 if local else int(weighed.best[pick])
        computed, loaded, tier = weighed.own.split(number) if local else weighed.prefill_own.split(best)
        return Estimate(
            worker=self._decode.workers[number].id,
            prefill=None if local else self._prefill.workers[best].id,
            held=int(weighed.held[number]),
            prefill_held=0 if local else int(weighed.prefill_held[best]),
            queue_ms=float((weighed.queue if local else weighed.prefill_queue)[number if local else best]),
            prefill_ms=computed,
            move_ms=0.0 if local else float(weighed.moved[pick, number]),
            wait_ms=float(weighed.wait[number]),
            others_ms=float(weighed.others[number] if local else weighed.prefill_own.ms[best] * _BEHIND),
            decode_ms=float(weighed.decode[number]),
            load_ms=loaded,
            load_tier=tier,
        )
