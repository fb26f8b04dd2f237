"""Copies go to another host where there is one, to workers of the wanted role, and where most of them is already."""

from dataclasses import replace

from runtime.domain.messages import Holder, PageForm, View, Worker
from runtime.domain.routing import DECODE, PREFILL, Placement, Route, Router
from runtime.router.mirroring import MirrorPolicy, MirrorRouter
from tests.router.placing import Said, asked, decode, prefill


def routed(*workers: Worker, said: Said | None = None, copies: int = 1, on: str = PREFILL, tokens: int = 1000) -> Route:
    """Of a turn that the first of the workers takes, since the others are busy."""
    busy = {worker.boot: 9 for worker in workers[1:]}
    router = MirrorRouter(Router(Placement.LEAST_LOADED), said or Said(), MirrorPolicy(copies, on))
    router.see(View(1, 1, workers), 0.0)
    route = router.route(asked(tokens, in_flight=busy), 0.0)
    assert route is not None
    assert route.worker == workers[0]
    return route


def names(holders: tuple[Holder, ...]) -> list[str]:
    return [each.worker for each in holders]


def test_a_worker_of_the_wanted_role_holds_the_copies() -> None:
    workers = decode("d"), decode("e"), prefill("p")
    assert names(routed(*workers).mirrors) == ["p", "e"]
    assert names(routed(*workers, on=DECODE).mirrors) == ["e", "p"]
    assert routed(*workers).copies == 1


def test_another_host_comes_before_the_role() -> None:
    route = routed(decode("d"), prefill("p"), decode("e", host="there"))
    assert names(route.mirrors) == ["e", "p"]


def test_whoever_has_most_of_it_already_goes_on_holding_it() -> None:
    workers = decode("d"), prefill("p"), prefill("q"), prefill("r")
    assert {names(routed(*workers, said=Said(d=512, q=512)).mirrors)[0] for _ in range(3)} == {"q"}


def test_equal_holders_are_used_equally() -> None:
    workers = decode("d"), prefill("p"), prefill("q")
    router = MirrorRouter(Router(Placement.LEAST_LOADED), Said(), MirrorPolicy(1, PREFILL))
    router.see(View(1, 1, workers), 0.0)
    routes = [router.route(asked(10), 0.0) for _ in range(4)]
    assert sorted(route.mirrors[0].worker for route in routes if route) == ["p", "p", "q", "q"]


def test_nobody_who_is_about_to_leave_is_given_copies_and_yet_he_is_asked_for_what_he_has() -> None:
    leaving = replace(prefill("p"), draining=True)
    route = routed(decode("d"), leaving, prefill("q"), said=Said(p=900))
    assert names(route.mirrors) == ["q"]
    assert names(route.holders) == ["p"]


def test_those_are_asked_who_have_more_than_the_chosen_worker_the_most_first() -> None:
    workers = decode("d"), decode("e"), decode("f"), prefill("p")
    route = routed(*workers, said=Said(d=256, e=300, f=640, p=960))
    assert names(route.holders) == ["p", "f"], "44 tokens are not worth asking"


def test_in_a_mesh_of_one_worker_nobody_holds_a_copy() -> None:
    route = routed(decode("d"), said=Said(d=900))
    assert (route.mirrors, route.holders) == ((), ())


def test_a_turn_that_goes_on_asks_first_who_holds_the_copies_of_its_last_attempt() -> None:
    workers = decode("e"), prefill("p"), prefill("q")
    route = routed(*workers, said=Said(p=900))
    gone, here, chosen = (
        Holder(each.id, each.boot, each.address, each.role) for each in (decode("x"), *workers[2:0:-1])
    )
    assert names(route.after((gone, here), View(1, 1, workers)).holders) == ["q", "p"]
    assert names(route.after((chosen, here), View(1, 1, workers)).holders) == ["p", "q"]


def test_who_is_suspected_is_neither_asked_nor_given_copies() -> None:
    workers = decode("d"), prefill("p"), prefill("q")
    router = MirrorRouter(Router(Placement.LEAST_LOADED), Said(p=900, q=640), MirrorPolicy(2, PREFILL))
    router.see(View(1, 1, workers), 0.0)
    route = router.route(asked(1000, exclude=frozenset({workers[1].boot})), 0.0)
    assert route is not None
    assert (names(route.mirrors), names(route.holders)) == (["q"], ["q"])


def test_copies_are_of_one_data_type_and_pages_are_fetched_from_where_they_can_be_made_to_fit() -> None:
    here = replace(decode("d"), pages=PageForm("bfloat16", ("float32",)))
    same, wide, other = (
        replace(prefill(name), pages=PageForm(dtype))
        for name, dtype in (("p", "bfloat16"), ("q", "float32"), ("r", "float16"))
    )
    route = routed(here, other, wide, same, said=Said(r=900, q=800, p=700))
    assert names(route.mirrors) == ["p"], "a copy of another type is one that no holder takes"
    assert names(route.holders) == ["q", "p"]
