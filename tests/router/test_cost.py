"""Where a turn is placed by what it would cost, and what is said about it."""

from collections import Counter
from dataclasses import replace

import pytest

from runtime.domain.messages import View
from runtime.domain.pages import Occupancy
from runtime.domain.profile import Profile
from runtime.domain.routing import Explained, Placement, Reason, Route, Router
from runtime.ids import BootId, WorkerId
from runtime.router.cost import CostRouter
from tests.router.placing import Said, asked, decode, prefill, profile, router


def went(made: CostRouter, tokens: int, now: float = 0.0, **more: object) -> str:
    """The decode worker, and by whom the prompt is prefilled."""
    route = made.route(asked(tokens, **more), now)  # type: ignore[arg-type]
    assert route is not None
    assert route.why is not None
    return f"{route.worker.id} {route.why.prefill or 'itself'}"


def placed(made: CostRouter, tokens: int) -> Route:
    route = made.route(asked(tokens), 0.0)
    assert route is not None
    return route


def test_before_anything_was_measured_the_least_loaded_is_taken_and_where_to_prefill_is_its_own_affair() -> None:
    made = router(decode("a", Profile(), running=3), decode("b", Profile()), prefill("p", Profile()))
    route = placed(made, 1000)
    assert (route.worker.id, route.remote_min_tokens, route.why) == ("b", None, None)
    assert [each.worker for each in route.candidates] == ["p"]


def test_nobody_is_chosen_where_nobody_serves() -> None:
    assert router().route(asked(10), 0.0) is None
    a = decode("a")
    assert router(a).route(asked(10, exclude=frozenset({a.boot})), 0.0) is None
    assert router(replace(a, draining=True)).route(asked(10), 0.0) is None


def test_equal_workers_are_used_equally() -> None:
    made = router(decode("a"), decode("b"), decode("c"))
    assert Counter(placed(made, 1).worker.id for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_the_worker_that_holds_the_prefix_is_worth_more_than_an_idle_one() -> None:
    made = router(decode("a", running=2), decode("b"), said=Said(a=9000))
    assert went(made, 10_000) == "a itself"


def test_a_prefix_is_not_worth_any_queue() -> None:
    made = router(decode("a", todo=50_000), decode("b"), said=Said(a=1000))
    assert went(made, 2000) == "b itself"


def test_what_was_placed_is_a_queue_until_time_has_passed_or_a_load_tells_better() -> None:
    a, b = decode("a"), decode("b", profile(token_ms=0.12))
    made = router(a, b)
    assert went(made, 4000) == "a itself"
    assert went(made, 4000) == "b itself", "a computes for 400 ms, and b takes 480 but begins now"
    assert went(made, 4000, now=10.0) == "a itself"
    made = router(a, b)
    assert went(made, 4000) == "a itself"
    assert a.load is not None
    made.see(View(1, 2, (replace(a, load=replace(a.load, running=1)), b)), 0.0)
    assert went(made, 4000) == "a itself", "it says that it has nothing to prefill"


def test_a_view_that_says_nothing_new_of_a_worker_leaves_what_was_placed_on_it() -> None:
    a, b = decode("a"), decode("b", profile(token_ms=0.12))
    made = router(a, b)
    assert went(made, 4000) == "a itself"
    made.see(View(1, 2, (b, a)), 0.0)
    assert went(made, 4000) == "b itself"


def test_a_long_prompt_goes_to_a_prefill_worker_and_a_short_one_does_not() -> None:
    made = router(decode("a"), prefill("p"))
    assert went(made, 20_000) == "a p"
    assert went(router(decode("a"), prefill("p", todo=500)), 100) == "a itself"


def test_where_others_decode_less_is_prefilled_beside_them() -> None:
    quiet, busy = router(decode("a"), prefill("p")), router(decode("a", running=30), prefill("p"))
    alone, beside = (placed(made, 10_000).remote_min_tokens for made in (quiet, busy))
    assert alone is not None
    assert beside is not None
    assert beside < alone


def test_a_busy_prefill_worker_makes_the_decode_worker_prefill_itself() -> None:
    assert went(router(decode("a"), prefill("p", todo=100_000)), 5000) == "a itself"


def test_the_bound_that_the_decode_worker_is_told_is_where_both_ways_cost_the_same() -> None:
    said = Said(a=5000, p=5000)
    made = router(decode("a", running=3), prefill("p", todo=2000), said=said)
    bound = placed(made, 20_000).remote_min_tokens
    assert bound is not None
    assert 0 < bound < 15_000
    for suffix, where in ((bound - 300, "a itself"), (bound + 300, "a p")):
        again = router(decode("a", running=3), prefill("p", todo=2000), said=Said(a=20_000 - suffix, p=20_000 - suffix))
        assert went(again, 20_000) == where


def test_a_slow_link_is_weighed_against_computing() -> None:
    fast, slow = {"grpc": 2.0}, {"grpc": 0.001}
    for links, where in ((fast, "a p"), (slow, "a itself")):
        assert went(router(decode("a"), prefill("p", profile(links=links), host="there")), 4000) == where


def test_shared_memory_is_for_workers_of_one_host() -> None:
    speed = profile(links={"shm": 10.0, "grpc": 0.01})
    near, far = prefill("p", speed), prefill("q", speed, host="there")
    assert went(router(decode("a"), far, near), 20_000) == "a p"


def test_a_prefill_worker_that_holds_the_history_moves_it_to_a_free_decode_worker() -> None:
    made = router(decode("a", running=30), decode("b"), prefill("p"), prefill("q"), said=Said(q=19_900))
    assert went(made, 20_000, more=200) == "b q"


def test_a_decode_worker_without_pages_is_left_alone() -> None:
    full = Occupancy(free=0, landing=0, owned=1000, cached=0)
    assert went(router(decode("a", running=4, pages=full), decode("b", running=4)), 3200, more=100) == "b itself"


def test_who_decodes_slower_gets_it_later() -> None:
    assert went(router(decode("a", profile(step_ms=20)), decode("b", running=8)), 10, more=100) == "b itself"


def test_a_prompt_with_nothing_to_find_goes_by_load_and_nobody_looks_for_its_pages() -> None:
    said = Said(a=60)
    route = placed(router(decode("a", running=3), decode("b"), prefill("p"), said=said), 60)
    assert (route.worker.id, route.remote_min_tokens, route.why, said.asked) == ("b", None, None, 0)


def test_turns_of_this_gateway_count_before_the_worker_reports_them() -> None:
    a, b = decode("a"), decode("b", running=2)
    assert went(router(a, b), 100, more=100, in_flight={a.boot: 9, BootId("gone"): 3}) == "b itself"


def test_pages_in_slower_memory_are_fetched_where_that_is_faster_than_computing() -> None:
    made = router(decode("a"), decode("b"), said=Said(b_host=9000))
    estimate = made.explain(asked(10_000), 0.0).costs[0]
    assert (estimate.worker, estimate.load_tier) == ("b", "host")
    assert (estimate.load_ms, estimate.prefill_ms) == pytest.approx((9000 * 0.1 / 4.0, 100), rel=0.01)
    quick = router(decode("a", profile(token_ms=0.001)), said=Said(cold=9000)).explain(asked(10_000), 0.0).costs[0]
    assert (quick.load_ms, quick.load_tier) == (0, ""), "the store is slower than to compute"
    assert quick.prefill_ms == pytest.approx(10, rel=0.01)
    stored = router(decode("a", profile(token_ms=1.0)), said=Said(cold=9000)).explain(asked(10_000), 0.0).costs[0]
    assert stored.load_tier == "cold"
    assert stored.load_ms == pytest.approx(9000 * 0.1 / 0.5, rel=0.01)


def test_what_the_turn_before_left_is_believed_until_the_directory_knows() -> None:
    made = router(decode("a"), decode("b"), decode("c"))
    assert {went(made, 4000, now=float(now), near=BootId("boot-b")) for now in range(6)} == {"b itself"}


def test_a_setting_leaves_the_bound_to_the_worker() -> None:
    assert placed(router(decode("a"), prefill("p"), fixed=True), 20_000).remote_min_tokens is None


def test_an_explanation_names_everybody_by_each_way_the_best_first_and_places_nothing() -> None:
    made = router(decode("a", running=5), decode("b"), decode("c", running=9, todo=900), prefill("p"), said=Said(a=500))
    told = made.explain(asked(3000, more=50), 0.0)
    assert made.explain(asked(3000, more=50), 0.0) == told
    totals = [each.total_ms for each in told.costs]
    assert sorted((each.worker, each.prefill or "") for each in told.costs) == [
        (name, by) for name in ("a", "b", "c") for by in ("", "p")
    ]
    assert totals == sorted(totals)
    route = made.route(asked(3000, more=50), 0.0)
    assert route is not None
    assert route.why == told.costs[0]
    assert (told.worker, told.reason) == (route.worker.id, Reason.COST)


@pytest.mark.parametrize("others", [2, 400])
def test_an_explanation_names_the_one_of_equals_whose_turn_it_is_and_shows_it_first(others: int) -> None:
    made = router(decode("a"), *(decode(f"b{n}") for n in range(others)), prefill("p"))
    for _ in range(others + 2):
        said = made.explain(asked(1000), 0.0)
        assert said.worker == placed(made, 1000).worker.id == said.costs[0].worker


def test_an_explanation_leaves_out_who_is_excluded() -> None:
    a, b = decode("a"), decode("b", running=5)
    told = router(a, b).explain(asked(100, exclude=frozenset({a.boot})), 0.0)
    assert (told.worker, {each.worker for each in told.costs}) == ("b", {"b"})


def test_where_nothing_is_weighed_the_explanation_says_why_and_names_the_next() -> None:
    new = router(decode("a", Profile(), running=3), decode("b", Profile()))
    assert new.explain(asked(1000), 0.0) == Explained(WorkerId("b"), Reason.UNMEASURED)
    short = router(decode("a", running=3), decode("b")).explain(asked(10), 0.0)
    assert (short.worker, short.reason, len(short.costs)) == ("b", Reason.SHORT, 2)
    for placement in (Placement.ROUND_ROBIN, Placement.LEAST_LOADED):
        plain = Router(placement)
        plain.see(View(1, 1, (decode("a"), decode("b"))), 0.0)
        for _ in range(3):
            told = plain.explain(asked(1000), 0.0)
            route = plain.route(asked(1000), 0.0)
            assert route is not None
            assert told == Explained(route.worker.id, Reason(placement.value))
    assert router().explain(asked(10), 0.0).worker is None


def test_an_unmeasured_worker_is_taken_to_be_as_the_others_are() -> None:
    made = router(decode("a", running=20), decode("new", Profile()), prefill("p"))
    assert went(made, 3000, more=50).startswith("new ")
