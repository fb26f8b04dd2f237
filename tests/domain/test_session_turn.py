"""A session turn's table at its owner: nothing is published before it is stored, and it ends once."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from runtime.domain import session_turn as st
from runtime.domain.generation import Delta
from runtime.domain.messages import Handoff
from runtime.domain.retention import Pause
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.domain.session_turn import SessionTurnState as S
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Halt,
    Item,
    Place,
    Prepared,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.domain.spending import Amounts, Measure, Reserve
from runtime.domain.tools import ToolCall
from runtime.errors import EngineFailed, IllegalTransition, StaleAttempt, Unavailable
from runtime.ids import BootId, GatewayId, SessionId, TenantId, TurnId

HELD = Amounts(12, 12, 9, 1, 60_000, 1 << 40)
RECORD = TurnRecord(
    TurnId("turn"), SessionId("sess"), TenantId("tenant"), MAIN, "model", TurnStatus.RUNNING, 3, GatewayId("gw"),
    Asked((Item("user", "Hi."),), Sampling(9), True, 60.0), Prepared(Place(0, 1), (4, 5), 10, 9, 2),
    reserve=Reserve(HELD),
)  # fmt: skip
RESTS = st.Rest(BootId("boot-a"), Ref(TurnId("turn"), 3, 1), Pause.ANSWER, 0)
FENCED = st.Fenced(StaleAttempt("older"))


def keep_all_but_one(tokens: Sequence[int], text: str, stopped: bool) -> int:
    assert text == "".join(f"<{token}>" for token in tokens)
    return len(tokens) - stopped


def came(index: int, count: int = 1, finish: FinishReason | None = None, attempt: int = 1) -> st.Came:
    tokens = tuple(Sampled(index + n) for n in range(count))
    text = "".join(f"<{sampled.token}>" for sampled in tokens)
    return st.Came(Delta(index, tokens, text, finish, Handoff(12, 8), attempt, BootId("boot-a")))


def event(seq: int, index: int, count: int = 1) -> TurnEvent:
    tokens = tuple(range(index, index + count))
    return TurnEvent(seq, index, tokens, "".join(f"<{token}>" for token in tokens))


def turn(
    *events: st.SessionTurnEvent, persisted: Sequence[TurnEvent] = (), held: Amounts = HELD, token_bytes: int = 0
) -> st.SessionTurn:
    machine = st.SessionTurn(
        replace(RECORD, reserve=Reserve(held)), persisted, keep_all_but_one, token_bytes=token_bytes
    )
    for each in events:
        machine.on(each)
    return machine


def finish(commands: list[st.SessionTurnCommand]) -> st.Finish:
    (command,) = [each for each in commands if isinstance(each, st.Finish)]
    return command


def test_nothing_is_published_before_it_is_stored() -> None:
    """Invariant 7."""
    machine = turn()
    assert machine.on(came(0)) == [st.Append(event(1, 0))]
    assert machine.published == []
    assert machine.on(st.Stored()) == [st.Publish()]
    assert machine.published == [event(1, 0)]


def test_what_comes_during_a_write_goes_together_with_the_next() -> None:
    machine = turn(came(0))
    assert machine.on(came(1)) == []
    assert machine.on(came(2, 2)) == []
    assert machine.on(st.Stored()) == [st.Publish(), st.Append(event(2, 1, 3))]
    assert machine.on(st.Stored()) == [st.Publish()]
    assert [each.seq for each in machine.published] == [1, 2]


def test_the_end_is_stored_with_the_last_tokens_and_published_after() -> None:
    machine = turn(came(0), st.Stored(), came(1))
    assert machine.on(came(2, finish=FinishReason.STOP)) == []
    commands = machine.on(st.Stored())
    end = finish(commands)
    assert commands == [st.Publish(), end]
    assert (end.tokens, end.events) == ((0, 1, 2), (event(1, 0), event(2, 1), event(3, 2)))
    assert (machine.state, machine.ending) == (S.ENDING, None)
    assert machine.on(st.Stored()) == [st.Publish(), RESTS]
    assert (machine.state, machine.ending) == (S.ENDED, end.ending)
    assert machine.published == list(end.events)


def test_an_ending_tells_what_was_spent_and_what_stays() -> None:
    end = finish(turn().on(came(0, 3, FinishReason.STOP, attempt=2))).ending
    assert (end.status, end.stop, end.kept) == (TurnStatus.COMMITTED, StopReason.END_TURN, 2)
    assert (end.spent.prompt, end.spent.cached, end.spent.completion) == (12, 8, 3)
    assert (end.attempts, end.boot, end.drift) == (2, "boot-a", 2)


def test_an_answer_that_was_cut_for_its_length_stays_whole() -> None:
    end = finish(turn().on(came(0, 3, FinishReason.LENGTH))).ending
    assert (end.stop, end.kept) == (StopReason.LENGTH, 3)


def test_what_an_earlier_owner_persisted_is_published_and_forced() -> None:
    machine = turn(persisted=[event(1, 0, 2), event(2, 2)])
    assert machine.given == (0, 1, 2)
    assert machine.published == [event(1, 0, 2), event(2, 2)]
    assert machine.on(came(3)) == [st.Append(event(3, 3))]


def test_a_write_that_was_not_answered_is_asked_again_as_it_was() -> None:
    machine = turn(came(0), came(1))
    assert machine.on(st.StoreSilent()) == [st.RetryLater()]
    assert machine.on(came(2)) == []
    assert machine.on(st.RetryDue()) == [st.Append(event(1, 0))]
    assert machine.on(st.Stored()) == [st.Publish(), st.Append(event(2, 1, 2))]


def test_an_end_that_was_not_answered_is_asked_again_as_it_was() -> None:
    machine = turn()
    end = finish(machine.on(came(0, finish=FinishReason.STOP)))
    assert machine.on(st.StoreSilent()) == [st.RetryLater()]
    assert machine.on(st.RetryDue()) == [end]


@pytest.mark.parametrize("last", [st.GraceOver(), FENCED])
def test_who_lost_the_turn_stops_and_tells_nobody_anything_more(last: st.SessionTurnEvent) -> None:
    machine = turn(came(0), st.Stored(), came(1))
    stop, gone = machine.on(last)
    assert (stop, type(gone)) == (st.StopGenerating(), st.GiveUp)
    assert machine.over
    assert machine.published == [event(1, 0)]
    for late in (came(2), st.Stored(), st.RetryDue(), st.Halted(Halt.DISCARD), FENCED):
        assert machine.on(late) == []


def test_a_halt_keeps_or_discards_what_there_is() -> None:
    kept = turn(came(0), st.Stored(), came(1), st.Stored())
    stop, end = kept.on(st.Halted(Halt.INTERRUPT))
    assert stop == st.StopGenerating()
    assert isinstance(end, st.Finish)
    assert (end.ending.status, end.ending.stop, end.ending.kept) == (
        TurnStatus.COMMITTED, StopReason.INTERRUPTED, 1,
    )  # fmt: skip
    discarded = turn(came(0), st.Stored())
    end = finish(discarded.on(st.Halted(Halt.DISCARD)))
    assert (end.ending.status, end.ending.kept, end.tokens) == (TurnStatus.CANCELLED, 0, (0,))


def test_a_halt_during_a_write_waits_for_it() -> None:
    machine = turn(came(0))
    assert machine.on(st.Halted(Halt.DISCARD)) == [st.StopGenerating()]
    assert finish(machine.on(st.Stored())).events == (event(1, 0),)


def test_a_generation_that_failed_fails_the_turn() -> None:
    error = EngineFailed("it died")
    end = finish(turn().on(st.Broke(error))).ending
    assert (end.status, end.error, end.kept) == (TurnStatus.FAILED, error, 0)


@pytest.mark.parametrize("late", [came(1), st.Broke(Unavailable("gone")), st.Halted(Halt.INTERRUPT)])
def test_an_end_that_is_decided_stays(late: st.SessionTurnEvent) -> None:
    machine = turn(came(0, finish=FinishReason.LENGTH))
    assert machine.on(late) == []
    assert machine.on(st.Stored()) == [st.Publish(), RESTS]
    assert machine.ending is not None
    assert machine.ending.stop is StopReason.LENGTH


def test_an_acknowledgement_that_nothing_waits_for_is_a_bug() -> None:
    with pytest.raises(IllegalTransition):
        turn().on(st.Stored())


TWO = replace(HELD, completion_tokens=2)


def extend(commands: list[st.SessionTurnCommand]) -> st.Extend:
    (command,) = [each for each in commands if isinstance(each, st.Extend)]
    return command


def test_more_is_asked_for_before_more_is_given_out_than_is_held() -> None:
    """Invariant 12: what the store has not granted is neither stored nor published."""
    machine = turn(held=TWO)
    asked = extend(machine.on(came(0, 3)))
    assert asked.want.completion_tokens == 9
    assert machine.on(came(3)) == []
    until, append = machine.on(st.Granted(asked.want))
    assert (type(until), append) == (st.HoldsUntil, st.Append(event(1, 0, 4)))


def test_where_no_more_is_granted_the_turn_ends_with_what_fits_and_names_the_limit() -> None:
    one = replace(HELD, completion_tokens=1)
    machine = turn(came(0), st.Granted(one), held=one)
    assert machine.on(came(1)) == []
    asked = extend(machine.on(st.Stored()))
    assert asked.want.completion_tokens == 9
    stop, *rest = machine.on(st.Granted(one))
    end = finish(rest)
    assert (stop, end.tokens) == (st.StopGenerating(), (0,))
    assert (end.ending.status, end.ending.stop, end.ending.limit) == (
        TurnStatus.COMMITTED, StopReason.BUDGET, Measure.COMPLETION,
    )  # fmt: skip
    assert end.ending.took == Amounts(4, 8, 1, 1)


def test_an_answer_that_ends_by_itself_beyond_what_is_held_ends_for_its_budget() -> None:
    machine = turn(held=TWO)
    machine.on(came(0, 2))
    machine.on(came(2, finish=FinishReason.STOP))
    end = finish(machine.on(st.Granted(TWO)))
    assert (end.tokens, end.ending.stop, end.ending.limit) == ((0, 1), StopReason.BUDGET, Measure.COMPLETION)


def test_of_tokens_that_came_together_those_that_fit_are_given_out() -> None:
    machine = turn(held=TWO)
    tokens = tuple(Sampled(token) for token in range(3))
    machine.on(st.Came(Delta(0, tokens, "<0><1><2>", FinishReason.STOP, ends=(3, 6))))
    end = finish(machine.on(st.Granted(TWO)))
    assert (end.tokens, end.events) == ((0, 1), (event(1, 0, 2),))
    assert (end.ending.stop, end.ending.took.completion_tokens) == (StopReason.BUDGET, 2)


def test_a_halt_stays_a_halt_where_the_last_tokens_do_not_fit() -> None:
    machine = turn(came(0), held=replace(HELD, completion_tokens=0))
    machine.on(st.Halted(Halt.DISCARD))
    end = finish(machine.on(st.Granted(replace(HELD, completion_tokens=0))))
    assert (end.tokens, end.ending.status, end.ending.limit) == ((), TurnStatus.CANCELLED, None)


@pytest.mark.parametrize(("measure", "token_bytes"), [(Measure.WALL, 0), (Measure.KV, 1000)])
def test_a_turn_whose_time_or_kv_is_over_ends_and_has_spent_it_all(measure: Measure, token_bytes: int) -> None:
    held = replace(HELD, wall_ms=500, kv_byte_seconds=1 << 40 if measure is Measure.WALL else 5000)
    machine = turn(came(0), st.Stored(), held=held, token_bytes=token_bytes)
    over = Amounts(wall_ms=499 if measure is Measure.KV else 620, kv_byte_seconds=4999)
    asked = extend(machine.on(st.SliceDue(), over))
    assert (asked.took, asked.want.wall_ms > 30_000) == (over, True)
    end = finish(machine.on(st.Granted(held), over)).ending
    assert (end.status, end.stop, end.limit) == (TurnStatus.COMMITTED, StopReason.BUDGET, measure)
    assert getattr(end.took, measure) == getattr(held, measure)


def test_time_is_asked_for_after_the_write_that_is_under_way() -> None:
    machine = turn(came(0))
    assert machine.on(st.SliceDue()) == []
    publish, asked = machine.on(st.Stored())
    assert (publish, type(asked)) == (st.Publish(), st.Extend)
    assert machine.on(st.StoreSilent()) == [st.RetryLater()]
    assert machine.on(st.RetryDue()) == [asked]
    assert [type(each) for each in machine.on(st.Granted(HELD))] == [st.HoldsUntil]


def test_a_turn_that_no_worker_began_has_cost_its_session_nothing() -> None:
    end = finish(turn().on(st.Broke(Unavailable("nobody")), Amounts(wall_ms=5))).ending
    assert end.took == Amounts(wall_ms=5)


def test_no_more_time_is_spent_than_was_held_however_late_its_owner_wakes() -> None:
    end = finish(turn().on(came(0, finish=FinishReason.STOP), Amounts(wall_ms=1 << 50, kv_byte_seconds=1 << 50))).ending
    assert (end.took.wall_ms, end.took.kv_byte_seconds) == (HELD.wall_ms, HELD.kv_byte_seconds)


CALL = ToolCall("call-1", "weather", "{}")


def calling(tokens: Sequence[int], text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """A pure function of all tokens and all of their text, whoever brought them."""
    assert text == "".join(f"<{token}>" for token in tokens)
    return "<0>", (CALL,) if len(tokens) > 2 else ()


@pytest.mark.parametrize(
    ("reason", "stop"),
    [(FinishReason.STOP, StopReason.TOOL_CALLS), (FinishReason.LENGTH, StopReason.LENGTH)],
)
def test_a_turn_ends_with_the_calls_of_all_of_its_tokens(reason: FinishReason, stop: StopReason) -> None:
    machine = st.SessionTurn(RECORD, [event(1, 0, 2)], keep_all_but_one, calling)
    ending = finish(machine.on(came(2, finish=reason))).ending
    assert (ending.stop, ending.calls, ending.said) == (stop, (CALL,), "<0>")
    halted = st.SessionTurn(RECORD, [event(1, 0, 3)], keep_all_but_one, calling)
    assert finish(halted.on(st.Halted(Halt.INTERRUPT))).ending.calls == (CALL,)
    gone = st.SessionTurn(RECORD, [event(1, 0, 3)], keep_all_but_one, calling)
    assert finish(gone.on(st.Halted(Halt.DISCARD))).ending.calls == ()
    none = st.SessionTurn(RECORD, [], keep_all_but_one, calling)
    ending = finish(none.on(came(0, finish=reason))).ending
    assert (ending.stop is StopReason.TOOL_CALLS, ending.calls, ending.said) == (False, (), "")
