"""The judge of KV that is kept after a turn's end: what may change then, what is held for it, what it came to."""

from dataclasses import replace

from runtime.domain.retention import KeptFor, Pause, Refusal, Retained
from runtime.domain.spending import Amounts, Reserve
from runtime.ids import SessionId, TurnId
from runtime.mesh.checking.keeping import book_kept, judge_kept, let_go
from runtime.mesh.checking.tables import HELD, KEPT_UNTIL
from runtime.store.packing import pack_kept, pack_reserve
from tests.store.talking import COMMITTED, record

SESSION, TURN = SessionId("sess-1"), TurnId("turn-1")
KEPT = Retained(Pause.ANSWER, 64, 1000, 60_000)
NOW_MS = 5000
ENDED = replace(record(SESSION, TURN), ending=replace(COMMITTED, retained=KEPT))
OVER: tuple[object, ...] = (SESSION, "main", "committed", 1, "gw", b"ending", None, None, None)
ON = (*OVER[:HELD], pack_reserve(Reserve(KEPT.reserve)), pack_kept(KEPT), NOW_MS + 60_000)


def test_after_its_end_a_turn_may_let_its_kv_go_and_nothing_else() -> None:
    assert let_go(ON, OVER)
    assert not let_go(OVER, OVER)
    assert not let_go(OVER, ON)
    for column in range(len(ON)):
        changed = tuple(b"other" if at == column else value for at, value in enumerate(OVER))
        assert not let_go(ON, changed), column


def violated(row: tuple[object, ...], retained: Retained | None) -> list[int]:
    ending = replace(COMMITTED, retained=retained)
    numbers: list[int] = []
    judge_kept(replace(ENDED, ending=ending), {(TURN,): row}, NOW_MS, lambda number, _: numbers.append(number))
    return numbers


def test_a_turn_that_ends_holds_what_its_grant_may_cost_for_as_long_as_was_told() -> None:
    assert violated(ON, KEPT) == []
    assert violated(OVER, None) == violated(OVER, Retained(Pause.ANSWER, refusal=Refusal.NO_PAGE)) == []
    assert violated(OVER, KEPT) == violated(ON, None) == [12, 11]
    assert violated((*ON[:KEPT_UNTIL], NOW_MS + 1), KEPT) == [11]
    assert violated((*ON[:HELD], None, *ON[HELD + 1 :]), KEPT) == [12]


def test_a_grant_counts_once_for_what_was_told_and_no_more_than_it_held() -> None:
    booked: dict[SessionId, Amounts] = {}
    told = KeptFor(SESSION, TURN, 700)
    for _ in range(2):
        book_kept(booked, told, {(TURN,): ON}, {(TURN,): ON})
    assert booked == {}, "it is not over"
    book_kept(booked, None, {(TURN,): ON}, {(TURN,): OVER})
    book_kept(booked, replace(told, turn=TurnId("turn-2")), {(TURN,): ON}, {})
    assert booked == {}, "nobody told of this one"
    book_kept(booked, told, {(TURN,): ON}, {(TURN,): OVER})
    book_kept(booked, told, {(TURN,): OVER}, {(TURN,): OVER})
    assert booked == {SESSION: Amounts(kv_byte_seconds=700)}
    book_kept(booked, KeptFor(SESSION, TURN, 10**9), {(TURN,): ON}, {})
    assert booked[SESSION] == Amounts(kv_byte_seconds=60_700)
