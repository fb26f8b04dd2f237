"""Which decode worker a turn gets, and in which order prefill workers are named."""

from collections import Counter
from dataclasses import replace

from runtime.domain.messages import View, Worker
from runtime.domain.pages import Occupancy
from runtime.domain.routing import DECODE, PREFILL, Placement, Router
from runtime.domain.steps import Load
from runtime.ids import BootId, WorkerId

NOBODY: frozenset[BootId] = frozenset()


def worker(name: str, role: str, depth: int | None = None) -> Worker:
    load = None if depth is None else Load(depth, 0, 0, 0, Occupancy(0, 0, 0, 0))
    return Worker(WorkerId(name), BootId(f"boot-{name}"), role, f"{name}:1", "m", "k", "s", 96, 4, "cpu x1", load)


def view(*workers: Worker) -> View:
    return View(1, 1, workers)


def chosen(router: Router, seen: View, count: int) -> Counter[str]:
    """How often each decode worker is chosen, when each turn also names its prefill workers."""
    found: Counter[str] = Counter()
    for _ in range(count):
        worker = router.choose(seen, {}, NOBODY)
        assert worker is not None
        router.candidates(seen)
        found[worker.id] += 1
    return found


def test_round_robin_uses_all_equally() -> None:
    seen = view(worker("a", DECODE), worker("p", PREFILL), worker("b", DECODE))
    assert chosen(Router(Placement.ROUND_ROBIN), seen, 10) == {"a": 5, "b": 5}


def test_a_worker_that_drains_gets_nothing_new() -> None:
    a, p = replace(worker("a", DECODE), draining=True), replace(worker("p", PREFILL), draining=True)
    seen = view(a, worker("b", DECODE), p, worker("q", PREFILL))
    for placement in (Placement.ROUND_ROBIN, Placement.LEAST_LOADED):
        assert chosen(Router(placement), seen, 4) == {"b": 4}
        assert [candidate.worker for candidate in Router(placement).candidates(seen)] == ["q"]
        assert Router(placement).choose(view(a), {}, NOBODY) is None


def test_workers_with_equal_load_are_used_equally() -> None:
    seen = view(worker("a", DECODE), worker("b", DECODE), worker("c", DECODE), worker("p", PREFILL))
    assert chosen(Router(Placement.LEAST_LOADED), seen, 9) == {"a": 3, "b": 3, "c": 3}


def test_the_least_loaded_worker_is_chosen_by_what_it_reported() -> None:
    seen = view(worker("a", DECODE, 5), worker("b", DECODE, 1), worker("c", DECODE, 3))
    assert chosen(Router(Placement.LEAST_LOADED), seen, 4) == {"b": 4}


def test_the_turns_of_this_gateway_count_before_the_worker_reports_them() -> None:
    a, b = worker("a", DECODE, 1), worker("b", DECODE, 2)
    assert Router(Placement.LEAST_LOADED).choose(view(a, b), {a.boot: 9}, NOBODY) == b


def test_an_excluded_generation_is_not_chosen_and_its_successor_is() -> None:
    dead = worker("a", DECODE)
    router = Router(Placement.LEAST_LOADED)
    assert router.choose(view(dead), {}, frozenset({dead.boot})) is None
    assert router.choose(view(dead), {}, frozenset({BootId("an earlier boot")})) == dead


def test_prefill_workers_decode_nothing() -> None:
    router = Router(Placement.ROUND_ROBIN)
    assert router.choose(view(worker("p", PREFILL)), {}, NOBODY) is None
    assert router.candidates(view(worker("a", DECODE))) == ()


def test_the_least_loaded_prefill_worker_is_named_first() -> None:
    seen = view(worker("p", PREFILL, 3), worker("q", PREFILL, 1), worker("r", PREFILL, 2))
    assert [each.worker for each in Router(Placement.LEAST_LOADED).candidates(seen)] == ["q", "r", "p"]


def test_equal_prefill_workers_take_turns_in_being_first() -> None:
    seen = view(worker("p", PREFILL), worker("q", PREFILL))
    router = Router(Placement.ROUND_ROBIN)
    assert Counter(router.candidates(seen)[0].worker for _ in range(6)) == {"p": 3, "q": 3}
