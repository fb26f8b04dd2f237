"""Judges what a store says of KV that is kept after a turn's end, and reckons what its session owes for that."""

from typing import cast

from runtime.domain.retention import KeptFor
from runtime.domain.sessions import TurnRecord, TurnStatus
from runtime.domain.spending import NOTHING, Amounts
from runtime.ids import SessionId
from runtime.mesh.checking.tables import HELD, KEPT, KEPT_UNTIL, SESSION, STATUS, Table, Violated
from runtime.store.packing import unpack_kept, unpack_reserve


def let_go(was: tuple[object, ...], row: tuple[object, ...]) -> bool:
    """Whether nothing of a turn that has ended has changed but that its KV is kept no more."""
    return was[KEPT_UNTIL] is not None and row == (*was[:HELD], None, None, None)


def judge_kept(turn: TurnRecord, turns: Table, now_ms: int, violated: Violated) -> None:
    """A turn that ends now holds on what its grant may cost (invariant 12), for as long as its client is told (11)."""
    row, ending = turns.get((turn.id,)), turn.ending
    if row is None or ending is None:
        return
    retained = ending.retained
    granted = retained if retained is not None and retained.refusal is None else None
    cost, until = (NOTHING, None) if granted is None else (granted.reserve, now_ms + granted.keep_ms)
    if (held := _held(row)) != cost:
        violated(12, f"{turn.id} has ended and holds {held}, what is kept of it may cost {cost}")
    if row[KEPT_UNTIL] != until:
        violated(11, f"{turn.id} is kept until {row[KEPT_UNTIL]}, its client was told {until}")


def book_kept(booked: dict[SessionId, Amounts], told: KeptFor | None, old: Table, turns: Table, now_ms: int) -> None:
    """Add what was told of the grants that are over now: each counts once, for no more than it held; one that a turn
    took back that begins now, for the time that it lasted. What else nobody told of costs nothing."""
    back = {row[SESSION] for key, row in turns.items() if _runs(row) and not _runs(old.get(key))}
    for key, was in old.items():
        row = turns.get(key)
        if was[KEPT_UNTIL] is None or (row is not None and row[KEPT_UNTIL] is not None):
            continue
        session, held = cast("SessionId", was[SESSION]), _held(was).kv_byte_seconds
        if told is not None and (told.turn, told.session) == (key[0], session):
            spent = min(told.byte_seconds, held)
        elif row is not None and session in back:
            left_ms = cast("int", was[KEPT_UNTIL]) - now_ms
            spent = max(held - unpack_kept(cast("bytes", was[KEPT]), 0).kv_bytes * left_ms // 1000, 0)
        else:
            continue
        booked[session] = booked.get(session, NOTHING) + Amounts(kv_byte_seconds=spent)


def _runs(row: tuple[object, ...] | None) -> bool:
    return row is not None and row[STATUS] == TurnStatus.RUNNING


def _held(row: tuple[object, ...]) -> Amounts:
    return unpack_reserve(cast("bytes | None", row[HELD])).held
