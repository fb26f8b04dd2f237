"""A request whose prompt the tiers have, in whole or in part: when it loads, and what it does then."""

from dataclasses import replace

from runtime.domain import request as r
from runtime.domain.loading import LoadEnded, LoadPages, PageLoaded
from runtime.domain.messages import Output, Start
from runtime.domain.request import RequestState as S
from runtime.domain.steps import DecodeAwaiting, DecodeLocal
from runtime.domain.tiers import Tier
from tests.domain.test_request import FRAMES, POLICY, START, P, tokens

ALONE = replace(START, candidates=())
LANDED = [r.LandFrame(FRAMES[0])]


def loading(start: Start = START, local_tokens: int = 0) -> r.Request:
    """A request that was told to load, of ten tokens of which the tiers have eight."""
    request = r.Request(start, POLICY)
    assert request.on(r.Begin(0, 8)) == [r.SubmitWork(DecodeAwaiting())]
    assert request.on(r.RoomReserved(local_tokens)) == [LoadPages(1, local_tokens)]
    return request


def loaded(request: r.Request, count: int, tier: Tier = Tier.COLD) -> None:
    for frame in FRAMES[:count]:
        assert request.on(PageLoaded(1, frame, tier)) == [r.LandFrame(frame)]


def test_what_is_loaded_is_not_asked_of_a_prefill_worker() -> None:
    request = loading()
    loaded(request, 2)
    assert request.on(LoadEnded(1)) == [r.RunSequence()]
    assert request.state is S.RUNNING


def test_a_long_rest_is_asked_of_a_prefill_worker_but_for_the_pages_that_are_here() -> None:
    request = loading(replace(START, prompt=tuple(range(20))))
    loaded(request, 2)
    assert request.on(LoadEnded(1)) == [r.OpenLanding(2, P, 0, frozenset({0, 1}))]
    assert request.on(LoadEnded(1)) == []
    assert request.on(PageLoaded(1, FRAMES[2], Tier.COLD)) == [], "it came too late"


def test_when_nothing_comes_all_of_it_is_computed() -> None:
    assert loading().on(LoadEnded(1)) == [r.OpenLanding(2, P, 0, frozenset())]
    assert loading(ALONE).on(LoadEnded(1)) == [r.RunSequence()]


def test_what_the_cache_has_is_not_loaded() -> None:
    request = r.Request(ALONE, POLICY)
    assert request.on(r.Begin(8, 8)) == [r.SubmitWork(DecodeLocal())]
    request = r.Request(ALONE, POLICY)
    request.on(r.Begin(4, 8))
    assert request.on(r.RoomReserved(8)) == [r.RunSequence()], "somebody else computed it meanwhile"


def test_a_prompt_that_is_scored_loads_nothing() -> None:
    scored = replace(ALONE, sampling=replace(START.sampling, prompt_logprobs=0))
    assert r.Request(scored, POLICY).on(r.Begin(0, 8)) == [r.SubmitWork(DecodeLocal())]


def test_a_request_that_waits_for_room_loads_when_it_has_it() -> None:
    request = r.Request(START, POLICY)
    request.on(r.Begin(0, 8))
    assert request.on(r.RoomRefused()) == []
    assert request.on(r.PagesFreed()) == [r.SubmitWork(DecodeAwaiting())]
    assert request.on(r.RoomReserved(0)) == [LoadPages(1, 0)]


def test_a_request_that_ends_while_it_loads_lets_go_of_everything() -> None:
    request = loading()
    loaded(request, 1)
    commands = request.on(r.CancelAsked())
    assert commands[:2] == [r.FenceLanding(1), r.CancelSequence()]
    assert request.on(PageLoaded(1, FRAMES[1], Tier.COLD)) == []
    assert request.on(LoadEnded(1)) == []


def first_output(request: r.Request) -> Output:
    (emitted,) = request.on(tokens(0))
    assert isinstance(emitted, r.Emit)
    assert isinstance(emitted.output, Output)
    return emitted.output


def test_usage_tells_which_tokens_came_from_which_tier() -> None:
    request = loading()
    loaded(request, 1, Tier.HOST)
    request.on(PageLoaded(1, FRAMES[1], Tier.COLD))
    request.on(LoadEnded(1))
    request.on(r.InBatch(0, 8))
    told = first_output(request).handoff
    assert told is not None
    assert (told.host_tokens, told.cold_tokens, told.moved_tokens, told.moved_pages) == (4, 4, 0, 0)


def test_what_was_loaded_and_then_lost_to_a_preemption_is_not_told() -> None:
    request = loading()
    loaded(request, 2)
    request.on(LoadEnded(1))
    request.on(r.InBatch(0, 8))
    request.on(r.InBatch(4, 0))
    told = first_output(request).handoff
    assert told is not None
    assert (told.cached_tokens, told.cold_tokens, told.moved_tokens) == (4, 0, 0)
