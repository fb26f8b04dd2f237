"""A session turn's table at its owner: nothing is published before it is stored, and it ends once."""

from collections.abc import Sequence

import pytest

from runtime.domain import session_turn as st
from runtime.domain.generation import Delta
from runtime.domain.messages import Handoff
from runtime.domain.sequence import FinishReason, Sampled, Sampling
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
from runtime.domain.tools import ToolCall
from runtime.errors import EngineFailed, IllegalTransition, StaleAttempt, Unavailable
from runtime.ids import BootId, GatewayId, SessionId, TenantId, TurnId

RECORD = TurnRecord(
    TurnId("turn"), SessionId("sess"), TenantId("tenant"), MAIN, "model", TurnStatus.RUNNING, 3, GatewayId("gw"),
    Asked((Item("user", "Hi."),), Sampling(9), True, 60.0), Prepared(Place(0, 1), (4, 5), 10, 9, 2),
)  # fmt: skip
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


def turn(*events: st.SessionTurnEvent, persisted: Sequence[TurnEvent] = ()) -> st.SessionTurn:
    machine = st.SessionTurn(RECORD, persisted, keep_all_but_one)
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
    assert machine.on(st.Stored()) == [st.Publish()]
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
    assert machine.on(st.Stored()) == [st.Publish()]
    assert machine.ending is not None
    assert machine.ending.stop is StopReason.LENGTH


def test_an_acknowledgement_that_nothing_waits_for_is_a_bug() -> None:
    with pytest.raises(IllegalTransition):
        turn().on(st.Stored())


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
