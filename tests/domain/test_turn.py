"""A stateless turn's table on its gateway: placed, failed over, attached again, and given out once."""

from dataclasses import replace

import pytest

from runtime.domain import turn as t
from runtime.domain.generation import Delta
from runtime.domain.messages import AttemptFailed, Handoff, Output
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref, Sampled
from runtime.domain.turn import TurnState as S
from runtime.errors import (
    BatonError,
    Cancelled,
    EngineFailed,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StaleAttempt,
    Unavailable,
)
from runtime.ids import BootId, TurnId

TURN = TurnId("turn")
A, B, C = BootId("boot-a"), BootId("boot-b"), BootId("boot-c")
NOBODY = Unavailable("nobody")
SCORES = PromptScores(0, (-1.0,), (1,))


def ref(attempt: int) -> Ref:
    return Ref(TURN, 1, attempt)


def out(index: int, count: int = 1, attempt: int = 1, finish: FinishReason | None = None) -> t.Arrived:
    sampled = tuple(Sampled(100 + index + n) for n in range(count))
    return t.Arrived(Output(ref(attempt), index, sampled, f"<{index}>", finish))


def given(index: int, count: int = 1, attempt: int = 1, finish: FinishReason | None = None) -> t.Give:
    sampled = tuple(Sampled(100 + index + n) for n in range(count))
    return t.Give(Delta(index, sampled, f"<{index}>", finish, None, attempt))


def lost(attempt: int, error: BatonError) -> t.AttemptLost:
    return t.AttemptLost(AttemptFailed(ref(attempt), error))


def turn_after(*events: t.TurnEvent) -> t.Turn:
    turn = t.Turn(TURN)
    for event in (t.Opened(), *events):
        turn.on(event)
    return turn


def failure(commands: list[t.TurnCommand]) -> BatonError:
    fail = commands[-1]
    assert isinstance(fail, t.Fail)
    return fail.error


END = out(1, finish=FinishReason.STOP)
WAYS: dict[S, list[t.TurnEvent]] = {
    S.QUEUED: [],
    S.PLACED: [t.Placed(A)],
    S.STREAMING: [t.Placed(A), out(0)],
    S.ATTACHING: [t.Placed(A), out(0), t.StreamBroken(A)],
    S.FINISHED: [t.Placed(A), out(0), END],
    S.CANCELLED: [t.Placed(A), t.ClientGone()],
    S.FAILED: [t.NobodyServes(NOBODY)],
}


def test_the_ways_to_all_states_are_true() -> None:
    assert {state: turn_after(*way).state for state, way in WAYS.items()} == {state: state for state in S}


def test_a_turn_is_placed_started_and_given_out_to_its_end() -> None:
    turn = t.Turn(TURN)
    assert turn.on(t.Opened()) == [t.Place(frozenset())]
    assert turn.on(t.Placed(A)) == [t.SendStart(A, ref(1), ())]
    assert turn.on(out(0, count=2)) == [given(0, count=2)]
    last = out(2, finish=FinishReason.LENGTH)
    assert turn.on(last) == [given(2, finish=FinishReason.LENGTH), t.SendAcknowledge(A, ref(1))]
    assert turn.ended


def test_one_output_may_be_all() -> None:
    turn = turn_after(t.Placed(A))
    assert turn.on(END.__class__(Output(ref(1), 0, (), "", FinishReason.STOP)))[-1] == t.SendAcknowledge(A, ref(1))


def test_how_the_prompt_got_its_kv_goes_out_with_the_tokens() -> None:
    handoff = Handoff(prompt_tokens=3)
    (give,) = turn_after(t.Placed(A)).on(t.Arrived(Output(ref(1), 0, (Sampled(1),), "", None, handoff)))
    assert isinstance(give, t.Give)
    assert give.delta.handoff == handoff


def test_what_the_prompt_is_worth_goes_out_once() -> None:
    turn = turn_after(t.Placed(A))
    arrived = t.Arrived(replace(out(0).output, scores=SCORES))
    (give,) = turn.on(arrived)
    assert isinstance(give, t.Give)
    assert give.delta.scores == SCORES
    turn.on(t.StreamBroken(A))
    assert turn.on(arrived) == [], "it is sent again when the stream is attached again"
    (again, _) = turn.on(t.Arrived(replace(out(0, 2, finish=FinishReason.STOP).output, scores=SCORES)))
    assert isinstance(again, t.Give)
    assert again.delta.scores is None


def test_nobody_to_serve_fails_a_turn_that_waits_and_no_other() -> None:
    assert failure(turn_after().on(t.NobodyServes(NOBODY))) is NOBODY
    for state in (S.PLACED, S.STREAMING, S.ATTACHING):
        assert turn_after(*WAYS[state]).on(t.NobodyServes(NOBODY)) == []


@pytest.mark.parametrize("state", [S.PLACED, S.STREAMING, S.ATTACHING])
def test_a_turn_is_not_placed_twice(state: S) -> None:
    with pytest.raises(IllegalTransition, match=f"{TURN}.* is illegal in .*{state.name}"):
        turn_after(*WAYS[state]).on(t.Placed(B))


# Failover


@pytest.mark.parametrize("state", [S.PLACED, S.STREAMING, S.ATTACHING])
@pytest.mark.parametrize("loss", [t.WorkerLost(A, crashed=False), t.WorkerLost(A, crashed=True), t.Overdue()])
def test_a_lost_worker_is_told_to_stop_and_avoided(state: S, loss: t.TurnEvent) -> None:
    turn = turn_after(*WAYS[state])
    assert turn.on(loss) == [t.SendCancel(A, ref(1)), t.Place(frozenset({A}))]
    assert turn.state is S.QUEUED


def test_the_next_attempt_is_forced_to_what_was_given_out_and_goes_on_after_it() -> None:
    turn = turn_after(t.Placed(A), out(0, count=2), t.WorkerLost(A, crashed=False))
    assert turn.on(t.Placed(B)) == [t.SendStart(B, ref(2), (100, 101))]
    assert turn.on(out(2, attempt=2)) == [given(2, attempt=2)]
    assert turn.on(t.WorkerLost(B, crashed=False))[-1] == t.Place(frozenset({A, B}))
    assert turn.on(t.Placed(C)) == [t.SendStart(C, ref(3), (100, 101, 102))]


def test_output_of_an_older_attempt_changes_nothing() -> None:
    turn = turn_after(t.Placed(A), out(0), t.WorkerLost(A, crashed=False))
    assert turn.on(out(1)) == [], "while it waits for a worker"
    turn.on(t.Placed(B))
    stale: list[t.TurnEvent] = [out(1), END, lost(1, EngineFailed("x"))]
    assert [turn.on(event) for event in stale] == [[], [], []]
    assert turn.state is S.PLACED


def test_an_index_already_seen_changes_nothing_and_what_is_new_of_an_output_is_given() -> None:
    turn = turn_after(t.Placed(A), out(0, count=2))
    assert turn.on(out(0, count=2)) == []
    assert turn.on(out(1)) == []
    (give,) = turn.on(out(1, count=2))
    assert isinstance(give, t.Give)
    assert (give.delta.index, give.delta.tokens) == (2, (Sampled(102),))


def test_a_gap_in_the_output_is_never_given_out_and_the_attempt_is_tried_anew() -> None:
    turn = turn_after(t.Placed(A), out(0))
    assert turn.on(out(2)) == [t.SendCancel(A, ref(1)), t.Place(frozenset({A}))]
    assert turn.on(t.Placed(B)) == [t.SendStart(B, ref(2), (100,))]


@pytest.mark.parametrize("error", [ResourceExhausted("full"), EngineFailed("died"), Unavailable("gone")])
def test_a_retryable_failure_is_tried_elsewhere(error: BatonError) -> None:
    assert turn_after(t.Placed(A)).on(lost(1, error)) == [t.Place(frozenset({A}))]


@pytest.mark.parametrize("error", [NotFound("unknown"), StaleAttempt("older")])
def test_a_worker_that_forgot_an_attempt_is_no_suspect(error: BatonError) -> None:
    assert turn_after(*WAYS[S.ATTACHING]).on(lost(1, error)) == [t.Place(frozenset())]


@pytest.mark.parametrize("error", [InvalidArgument("bad"), Cancelled("so")])
def test_a_failure_that_would_repeat_itself_is_told_to_the_client(error: BatonError) -> None:
    turn = turn_after(t.Placed(A))
    assert failure(turn.on(lost(1, error))) is error
    assert turn.state is S.FAILED


def test_the_loss_of_another_worker_changes_nothing() -> None:
    turn = turn_after(t.Placed(A))
    others: list[t.TurnEvent] = [t.WorkerLost(B, crashed=True), t.StreamBroken(B)]
    assert [turn.on(event) for event in others] == [[], []]
    assert turn.state is S.PLACED


def test_losses_that_come_while_it_waits_for_a_worker_change_nothing() -> None:
    turn = turn_after(t.Placed(A), t.WorkerLost(A, crashed=False))
    late: list[t.TurnEvent] = [t.WorkerLost(A, crashed=True), t.StreamBroken(A), lost(1, EngineFailed("x"))]
    assert [turn.on(event) for event in late] == [[], [], []]


# Broken streams


@pytest.mark.parametrize("state", [S.PLACED, S.STREAMING])
def test_a_broken_stream_is_attached_again_at_the_same_worker(state: S) -> None:
    turn = turn_after(*WAYS[state])
    have = 1 if state is S.STREAMING else 0
    assert turn.on(t.StreamBroken(A)) == [t.SendAttach(A, ref(1), have)]
    assert turn.on(t.StreamBroken(A)) == [t.SendAttach(A, ref(1), have)]
    assert turn.on(out(have)) == [given(have)]
    assert turn.state is S.STREAMING


def test_an_attached_stream_may_bring_the_end_at_once() -> None:
    turn = turn_after(*WAYS[S.ATTACHING])
    assert turn.on(END) == [given(1, finish=FinishReason.STOP), t.SendAcknowledge(A, ref(1))]


def test_a_worker_whose_streams_break_again_and_again_is_left() -> None:
    turn = turn_after(t.Placed(A))
    for _ in range(t.MAX_ATTACHES):
        assert turn.on(t.StreamBroken(A)) == [t.SendAttach(A, ref(1), 0)]
    assert turn.on(t.StreamBroken(A)) == [t.SendCancel(A, ref(1)), t.Place(frozenset({A}))]


def test_a_stream_that_brought_something_is_worth_attaching_again() -> None:
    turn = turn_after(t.Placed(A))
    for index in range(3 * t.MAX_ATTACHES):
        turn.on(t.StreamBroken(A))
        assert turn.on(out(index)) == [given(index)]


# Poison


def test_a_turn_that_was_running_on_two_engines_when_they_crashed_is_poison() -> None:
    turn = turn_after(t.Placed(A), lost(1, EngineFailed("x")), t.Placed(B))
    assert failure(turn.on(lost(2, EngineFailed("y")))).status.code == "poison"


def test_dead_processes_and_dead_engines_count_alike() -> None:
    turn = turn_after(t.Placed(A), t.StreamBroken(A), t.WorkerLost(A, crashed=True), t.Placed(B))
    assert failure(turn.on(lost(2, EngineFailed("y")))).status.code == "poison"


def test_a_turn_is_not_blamed_for_dead_workers_that_it_never_reached() -> None:
    turn = turn_after(t.Placed(A), t.WorkerLost(A, crashed=True), t.Placed(B), t.WorkerLost(B, crashed=True))
    assert turn.state is S.QUEUED
    turn.on(t.Placed(C))
    assert turn.on(t.WorkerLost(C, crashed=True)) == [t.SendCancel(C, ref(3)), t.Place(frozenset({A, B, C}))]


def test_frozen_and_parted_workers_are_no_crashes() -> None:
    turn = turn_after()
    for boot in (A, B, C):
        for event in (t.Placed(boot), t.StreamBroken(boot), t.WorkerLost(boot, crashed=False)):
            turn.on(event)
    assert turn.state is S.QUEUED


def test_attempts_are_bounded_and_the_last_failure_is_told() -> None:
    turn = turn_after()
    for attempt in range(1, t.MAX_ATTEMPTS):
        turn.on(t.Placed(A))
        assert turn.on(lost(attempt, Unavailable("no"))) == [t.Place(frozenset({A}))]
    turn.on(t.Placed(A))
    told = failure(turn.on(lost(t.MAX_ATTEMPTS, ResourceExhausted("enough"))))
    assert (told.status.code, told.message) == ("unavailable", "the request was tried 16 times, at last: enough")


# Ends


@pytest.mark.parametrize("state", [S.QUEUED, S.PLACED, S.STREAMING, S.ATTACHING])
def test_a_client_that_goes_away_cancels_the_attempt(state: S) -> None:
    turn = turn_after(*WAYS[state])
    assert turn.on(t.ClientGone()) == ([] if state is S.QUEUED else [t.SendCancel(A, ref(1))])
    assert turn.state is S.CANCELLED


@pytest.mark.parametrize("state", [S.QUEUED, S.PLACED, S.STREAMING, S.ATTACHING])
def test_the_deadline_cancels_the_attempt_and_fails_the_turn(state: S) -> None:
    turn = turn_after(*WAYS[state])
    commands = turn.on(t.DeadlinePassed())
    assert commands[:-1] == ([] if state is S.QUEUED else [t.SendCancel(A, ref(1))])
    assert (failure(commands).status.code, failure(commands).field) == ("deadline", "deadline_ms")


def test_a_turn_that_waits_between_two_attempts_has_nothing_to_cancel() -> None:
    assert turn_after(t.Placed(A), t.WorkerLost(A, crashed=False)).on(t.ClientGone()) == []


LATE: list[t.TurnEvent] = [
    t.Placed(B), t.NobodyServes(NOBODY), out(5), lost(1, EngineFailed("x")), t.StreamBroken(A),
    t.WorkerLost(A, crashed=True), t.Overdue(), t.ClientGone(), t.DeadlinePassed(),
]  # fmt: skip


@pytest.mark.parametrize("event", LATE, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", [S.FINISHED, S.CANCELLED, S.FAILED])
def test_after_the_end_every_event_is_legal_and_brings_nothing(state: S, event: t.TurnEvent) -> None:
    turn = turn_after(*WAYS[state])
    assert turn.on(event) == []
    assert turn.state is state


def test_an_end_that_comes_again_was_not_acknowledged_and_is_now() -> None:
    assert turn_after(*WAYS[S.FINISHED]).on(END) == [t.SendAcknowledge(A, ref(1))]
