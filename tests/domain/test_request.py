"""A running request's table on its decode worker, row by row: what each event does in each state, also too late."""

from dataclasses import replace

import pytest

from runtime.domain import request as r
from runtime.domain.loading import LoadPages
from runtime.domain.messages import AttemptFailed, Handoff, Output, PrefillCandidate, PrefillDone, Start
from runtime.domain.request import RequestState as S
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.domain.sources import Policy
from runtime.domain.steps import DecodeAwaiting, DecodeLocal, Frame
from runtime.errors import EngineFailed, IllegalTransition
from runtime.ids import BootId, PageId, TenantId, TurnId, WorkerId

REF = Ref(TurnId("turn"), 1, 2)
P, Q, R = (PrefillCandidate(WorkerId(name), BootId(f"boot-{name}"), f"{name}:1") for name in "pqr")
POLICY = Policy(remote_min_tokens=6, detached_tokens=3, transfers=2)
PROMPT = tuple(range(10))
START = Start(REF, TenantId("t"), PROMPT, Sampling(max_tokens=9), candidates=(P, Q, R), remaining_ms=1000)
LOCAL, AWAITING = r.SubmitWork(DecodeLocal()), r.SubmitWork(DecodeAwaiting())
FRAMES = tuple(Frame(PageId(bytes([index]) * 16), index, 4, b"12345678") for index in range(3))
SCORES = PromptScores(0, (-1.0,), (1,))
ERROR = EngineFailed("it burnt")


def tokens(index: int, count: int = 1, finish: FinishReason | None = None) -> r.NewTokens:
    return r.NewTokens(index, tuple(Sampled(100 + index + n) for n in range(count)), "text", finish)


def output(event: r.NewTokens, handoff: Handoff | None = None) -> Output:
    return Output(REF, event.index, event.tokens, event.text, event.finish, handoff)


LAST = tokens(1, finish=FinishReason.LENGTH)


def request_in(state: S, start: Start = START) -> r.Request:
    """A request that came to this state on the shortest way; RUNNING has given one token, FINISHED two."""
    request = r.Request(start, POLICY)
    ways: dict[S, list[r.RequestEvent]] = {
        S.NEW: [],
        S.RESERVING: [r.Begin(0)],
        S.WAITING_ROOM: [r.Begin(0), r.RoomRefused()],
        S.LANDING: [r.Begin(0), r.RoomReserved(0)],
        S.RUNNING: [r.Begin(9), tokens(0)],
        S.FINISHED: [r.Begin(9), tokens(0), LAST],
        S.CLOSED: [r.CancelAsked()],
    }
    for event in ways[state]:
        request.on(event)
    assert request.state is state
    return request


EVENTS: list[r.RequestEvent] = [
    r.RoomReserved(0), r.RoomRefused(), r.PagesFreed(), r.FrameVerified(1, FRAMES[0]), r.LandingComplete(1),
    r.LandingLost(1, "lost"), r.PeerDone(1, PrefillDone(0, 0, 0)), r.InBatch(0, 0), tokens(2), LAST,
    r.SequenceLost(ERROR), r.GatewayLost(), r.Attached(0), r.Acknowledged(), r.CancelAsked(), r.DeadlinePassed(),
    r.Superseded(), r.GraceOver(),
]  # fmt: skip


# Beginning


@pytest.mark.parametrize(("cached", "expected"), [(3, AWAITING), (4, LOCAL), (10, LOCAL)])
def test_only_a_long_uncached_suffix_is_prefilled_elsewhere(cached: int, expected: r.RequestCommand) -> None:
    # Ten tokens, of which the last runs here in any case: 9 - 3 = 6 are worth the way.
    assert r.Request(START, POLICY).on(r.Begin(cached)) == [expected]


def test_forced_tokens_count_as_what_has_to_be_computed() -> None:
    start = replace(START, prompt=PROMPT[:3], forced=(7, 8, 9, 10))
    assert r.Request(start, POLICY).on(r.Begin(0)) == [AWAITING]


def test_what_only_the_pool_had_and_was_evicted_is_asked_of_no_tier() -> None:
    request = r.Request(START, POLICY)
    assert request.on(r.Begin(2, 2)) == [AWAITING]
    assert not any(isinstance(command, LoadPages) for command in request.on(r.RoomReserved(0)))


def test_without_a_prefill_worker_everything_is_local() -> None:
    request = r.Request(replace(START, candidates=()), POLICY)
    assert request.on(r.Begin(0)) == [LOCAL]
    assert request.state is S.RUNNING


def test_a_prompt_that_is_scored_is_computed_here_unless_that_was_told_already() -> None:
    scored = replace(START, sampling=replace(START.sampling, prompt_logprobs=0))
    assert r.Request(scored, POLICY).on(r.Begin(0)) == [LOCAL]
    assert r.Request(replace(scored, forced=(1,)), POLICY).on(r.Begin(0)) == [AWAITING]


def test_what_the_prompt_is_worth_is_kept_for_a_gateway_that_comes_back() -> None:
    request = request_in(S.NEW)
    request.on(r.Begin(9))
    (emitted,) = request.on(replace(tokens(0), scores=SCORES))
    assert isinstance(emitted, r.Emit)
    assert isinstance(emitted.output, Output)
    assert emitted.output.scores == SCORES
    request.on(r.GatewayLost())
    assert request.on(r.Attached(0)) == [emitted]


def test_a_request_begins_once() -> None:
    with pytest.raises(IllegalTransition, match="turn"):
        request_in(S.RUNNING).on(r.Begin(0))


# Room


def test_room_found_opens_the_first_transfer_with_the_best_peer() -> None:
    assert request_in(S.RESERVING).on(r.RoomReserved(4)) == [r.OpenLanding(1, P, 4, frozenset())]


def test_room_whose_pages_are_here_meanwhile_needs_no_transfer() -> None:
    request = request_in(S.RESERVING)
    assert request.on(r.RoomReserved(9)) == [r.RunSequence()]
    assert request.state is S.RUNNING


def test_without_room_it_waits_for_freed_pages_and_tries_again() -> None:
    request = request_in(S.RESERVING)
    assert request.on(r.RoomRefused()) == []
    assert request.on(r.PagesFreed()) == [AWAITING]
    assert request.on(r.PagesFreed()) == [], "one try at a time"
    assert request.state is S.RESERVING


def test_forced_tokens_that_end_the_answer_end_it_before_there_is_room() -> None:
    event = replace(LAST, tokens=())
    request = request_in(S.RESERVING)
    assert request.on(event) == [r.Emit(output(event, Handoff(prompt_tokens=10))), r.ArmGrace()]
    assert request.state is S.FINISHED


# Landing


def test_verified_frames_land_and_a_complete_transfer_lets_it_run() -> None:
    request = request_in(S.LANDING)
    assert request.on(r.FrameVerified(1, FRAMES[0])) == [r.LandFrame(FRAMES[0])]
    assert request.on(r.LandingComplete(1)) == [r.RunSequence()]
    assert request.state is S.RUNNING


def test_a_lost_transfer_is_fenced_and_the_next_peer_is_asked_only_for_what_is_missing() -> None:
    request = request_in(S.LANDING)
    request.on(r.FrameVerified(1, FRAMES[1]))
    assert request.on(r.LandingLost(1, "x")) == [r.FenceLanding(1), r.OpenLanding(2, Q, 0, frozenset({1}))]
    assert request.state is S.LANDING


def test_after_the_last_transfer_the_engine_computes_what_is_missing() -> None:
    request = request_in(S.LANDING)
    request.on(r.LandingLost(1, "x"))
    assert request.on(r.LandingLost(2, "x")) == [r.FenceLanding(2), r.RunSequence()], "transfers bounds the peers"
    assert request.state is S.RUNNING


def test_words_of_an_earlier_transfer_bring_nothing() -> None:
    request = request_in(S.LANDING)
    request.on(r.LandingLost(1, "x"))
    stale: list[r.RequestEvent] = [
        r.FrameVerified(1, FRAMES[0]),
        r.LandingComplete(1),
        r.LandingLost(1, "again"),
        r.PeerDone(1, PrefillDone(9, 9, 9)),
    ]
    assert [request.on(event) for event in stale] == [[]] * 4
    assert request.state is S.LANDING


def test_the_first_tokens_bring_how_the_prompt_got_its_kv() -> None:
    request = request_in(S.LANDING)
    events: list[r.RequestEvent] = [
        r.FrameVerified(1, FRAMES[0]),
        r.FrameVerified(1, FRAMES[1]),
        r.PeerDone(1, PrefillDone(cached_tokens=4, pages=2, payload_bytes=16)),
        r.LandingComplete(1),
        r.InBatch(cached_tokens=0, landed_tokens=8),
    ]
    for event in events:
        request.on(event)
    handoff = Handoff(10, 0, moved_tokens=8, moved_pages=2, moved_bytes=16, prefill_worker=P.worker)
    expected = replace(handoff, prefill_cached_tokens=4)
    assert request.on(tokens(0)) == [r.Emit(output(tokens(0), expected))]
    assert request.on(tokens(1)) == [r.Emit(output(tokens(1)))]


def test_a_report_that_comes_after_the_first_tokens_is_told_with_the_last() -> None:
    request = request_in(S.LANDING)
    for event in (r.FrameVerified(1, FRAMES[0]), r.LandingComplete(1), r.InBatch(cached_tokens=0, landed_tokens=4)):
        request.on(event)
    handoff = Handoff(10, 0, moved_tokens=4, moved_pages=1, moved_bytes=8, prefill_worker=P.worker)
    assert request.on(tokens(0)) == [r.Emit(output(tokens(0), handoff))]
    request.on(r.PeerDone(1, PrefillDone(cached_tokens=4, pages=1, payload_bytes=8)))
    assert request.on(tokens(1)) == [r.Emit(output(tokens(1)))]
    assert request.on(LAST) == [r.Emit(output(LAST, replace(handoff, prefill_cached_tokens=4))), r.ArmGrace()]


def test_a_preemption_does_not_change_what_the_first_tokens_told() -> None:
    request = request_in(S.RUNNING)
    assert request.on(r.InBatch(cached_tokens=8, landed_tokens=0)) == []
    assert request.on(tokens(1)) == [r.Emit(output(tokens(1)))]


# The end


def test_the_last_tokens_finish_it_and_the_acknowledgement_closes_it() -> None:
    request = request_in(S.RUNNING)
    assert request.on(LAST) == [r.Emit(output(LAST)), r.ArmGrace()]
    assert request.on(r.Acknowledged()) == [r.Forget()]
    assert request.state is S.CLOSED


def test_an_end_that_nobody_acknowledges_is_kept_only_for_the_grace() -> None:
    assert request_in(S.FINISHED).on(r.GraceOver()) == [r.Forget()]


def test_a_finished_request_has_no_deadline_any_more() -> None:
    assert request_in(S.FINISHED).on(r.DeadlinePassed()) == []


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (r.CancelAsked(), "cancelled"),
        (r.DeadlinePassed(), "deadline"),
        (r.Superseded(), "stale"),
        (r.SequenceLost(ERROR), "engine"),
    ],
)
@pytest.mark.parametrize("state", [S.NEW, S.RESERVING, S.WAITING_ROOM, S.LANDING, S.RUNNING])
def test_whatever_ends_it_frees_everything_and_is_told(state: S, event: r.RequestEvent, code: str) -> None:
    request = request_in(state)
    *frees, told, forget = request.on(event)
    fence: list[r.RequestCommand] = [r.FenceLanding(1)] if state is S.LANDING else []
    assert frees == [*fence, r.CancelSequence()]
    assert isinstance(told, r.Emit)
    assert isinstance(told.output, AttemptFailed)
    assert (told.output.ref, told.output.error.status.code) == (REF, code)
    assert forget == r.Forget()
    assert request.state is S.CLOSED


# Gateways that go away


@pytest.mark.parametrize("state", [S.NEW, S.RESERVING, S.WAITING_ROOM, S.LANDING])
def test_a_gateway_lost_before_the_first_token_ends_it_in_silence(state: S) -> None:
    request = request_in(state)
    fence: list[r.RequestCommand] = [r.FenceLanding(1)] if state is S.LANDING else []
    assert request.on(r.GatewayLost()) == [*fence, r.CancelSequence(), r.Forget()]


def test_a_running_request_goes_on_without_its_gateway_and_sends_the_rest_when_it_is_back() -> None:
    request = request_in(S.RUNNING)
    assert request.on(r.GatewayLost()) == [r.ArmGrace()]
    assert request.on(r.GatewayLost()) == []
    assert request.on(tokens(1)) == []
    assert request.on(tokens(2)) == []
    assert request.on(r.Attached(have=2)) == [r.Emit(output(tokens(2)))]
    assert request.on(tokens(3)) == [r.Emit(output(tokens(3)))]


def test_what_was_written_to_a_broken_stream_is_sent_again_when_the_gateway_did_not_get_it() -> None:
    request = request_in(S.RUNNING)
    request.on(tokens(1))
    request.on(r.GatewayLost())
    assert request.on(r.Attached(have=1)) == [r.Emit(output(tokens(1)))]


def test_a_gateway_may_attach_anew_before_the_worker_knows_that_the_old_stream_broke() -> None:
    request = request_in(S.RUNNING)
    assert request.on(r.Attached(have=1)) == []
    assert not request.detached


def test_a_request_that_finished_alone_sends_its_end_and_waits_for_the_acknowledgement_anew() -> None:
    request = request_in(S.RUNNING)
    request.on(r.GatewayLost())
    assert request.on(LAST) == [r.ArmGrace()]
    assert request.on(r.Attached(have=1)) == [r.Emit(output(LAST)), r.ArmGrace()]
    assert request.on(r.Acknowledged()) == [r.Forget()]


def test_the_end_is_sent_again_even_to_a_gateway_that_has_all_tokens() -> None:
    request = request_in(S.FINISHED)
    request.on(r.GatewayLost())
    assert request.on(r.Attached(have=2)) == [r.Emit(output(LAST)), r.ArmGrace()]


def test_a_detached_request_is_closed_at_the_bound_of_its_buffer() -> None:
    request = request_in(S.RUNNING)
    request.on(r.GatewayLost())
    assert [request.on(tokens(index)) for index in (1, 2, 3)] == [[], [], []]
    assert request.on(tokens(4)) == [r.CancelSequence(), r.Forget()]


def test_the_bound_counts_from_where_the_gateway_left() -> None:
    request = request_in(S.RUNNING)
    for index in range(1, 50):
        request.on(tokens(index))
    request.on(r.GatewayLost())
    assert request.on(tokens(50)) == []


def test_before_its_first_tokens_the_bound_counts_from_the_forced_ones() -> None:
    request = r.Request(replace(START, forced=(7,) * 100), POLICY)
    request.on(r.Begin(109))
    request.on(r.GatewayLost())
    assert request.on(tokens(100)) == []


def test_a_detached_request_is_closed_when_the_grace_is_over_and_an_attached_one_is_not() -> None:
    request = request_in(S.RUNNING)
    request.on(r.GatewayLost())
    request.on(r.Attached(1))
    assert request.on(r.GraceOver()) == [], "the grace of the time before"
    request.on(r.GatewayLost())
    assert request.on(r.GraceOver()) == [r.CancelSequence(), r.Forget()]


@pytest.mark.parametrize("event", [r.SequenceLost(ERROR), r.DeadlinePassed(), r.Superseded(), r.CancelAsked()])
def test_nobody_is_told_of_the_end_of_a_detached_request(event: r.RequestEvent) -> None:
    request = request_in(S.RUNNING)
    request.on(r.GatewayLost())
    assert request.on(event) == [r.CancelSequence(), r.Forget()]


# Late events


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_after_the_end_every_event_is_legal_and_brings_nothing(event: r.RequestEvent) -> None:
    assert request_in(S.CLOSED).on(event) == []


_TAKEN: dict[S, set[type]] = {
    S.RESERVING: {r.RoomReserved, r.RoomRefused, r.NewTokens, r.DeadlinePassed},
    S.WAITING_ROOM: {r.PagesFreed, r.DeadlinePassed},
    S.LANDING: {r.FrameVerified, r.LandingComplete, r.LandingLost, r.DeadlinePassed},
    S.RUNNING: {r.NewTokens, r.GatewayLost, r.DeadlinePassed},
    S.FINISHED: {r.GatewayLost, r.Attached, r.Acknowledged, r.GraceOver},
}
_ENDINGS: set[type] = {r.SequenceLost, r.GatewayLost, r.CancelAsked, r.Superseded}


_OTHERS = [(state, event) for state in _TAKEN for event in EVENTS if type(event) not in _TAKEN[state] | _ENDINGS]


@pytest.mark.parametrize(("state", "event"), _OTHERS, ids=lambda each: getattr(each, "name", type(each).__name__))
def test_an_event_that_comes_too_early_or_too_late_changes_nothing(state: S, event: r.RequestEvent) -> None:
    request = request_in(state)
    again = state is S.RUNNING and isinstance(event, r.Attached)
    assert request.on(event) == ([r.Emit(output(tokens(0), Handoff(10)))] if again else [])
    assert request.state is state
