"""Bugs of budgets and of erasures that the simulation has to find, as in `planted.py`."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.retention import KeptFor, Retained
from runtime.domain.sessions import Ending, TurnRecord
from runtime.domain.spending import MAX_LIMIT, NOTHING, Account
from runtime.ids import TurnId
from runtime.store import accounting, erasing, keeping, running
from runtime.store.content import OF_A_SESSION
from runtime.store.transaction import Transaction

Patch = pytest.MonkeyPatch


def branches_that_overspend_together(patch: Patch) -> None:
    """What other turns hold is not counted."""
    original = Account._free

    def free(self: Account) -> tuple[int | None, ...]:
        return original(replace(self, held=NOTHING))

    patch.setattr(Account, "_free", free)


def reservation_that_is_never_given_back(patch: Patch) -> None:
    settle = accounting.settle

    async def keep(tx: Transaction, turn: TurnRecord, ending: Ending) -> None:
        before = await tx.row("SELECT held FROM accounts WHERE session = $1", turn.session)
        await settle(tx, turn, ending)
        assert before is not None
        await tx.run("UPDATE accounts SET held = $2 WHERE session = $1", turn.session, before[0])

    patch.setattr(running, "settle", keep)


def adopted_turn_that_is_paid_twice(patch: Patch) -> None:
    """A turn that is taken over is paid for by both of its owners."""
    settle = accounting.settle

    async def twice(tx: Transaction, turn: TurnRecord, ending: Ending) -> None:
        took = ending.took + ending.took if turn.epoch > 1 and ending.attempts > 1 else ending.took
        await settle(tx, turn, replace(ending, took=took))

    patch.setattr(running, "settle", twice)


def kept_kv_that_is_paid_to_its_end(patch: Patch) -> None:
    """A session that is back early pays for all the time that its KV might have been kept."""
    book = keeping.book

    async def in_full(tx: Transaction, kept: KeptFor) -> None:
        await book(tx, replace(kept, byte_seconds=MAX_LIMIT))

    patch.setattr(keeping, "book", in_full)


def kept_kv_whose_reserve_is_let_go_at_the_end(patch: Patch) -> None:
    """Nothing is held for what keeping a turn's KV may come to."""
    hold_kept = keeping.hold_kept

    async def forgotten(tx: Transaction, turn: TurnId, retained: Retained | None) -> None:
        await hold_kept(tx, turn, retained)
        await tx.run("UPDATE turns SET held = NULL WHERE id = $1", turn)

    patch.setattr(running, "hold_kept", forgotten)


def erasure_that_leaves_the_data_key(patch: Patch) -> None:
    patch.setattr(erasing, "OF_A_SESSION", tuple(name for name in OF_A_SESSION if name != "session_keys"))


CONTRACT_BUGS: dict[Callable[[Patch], None], set[int]] = {
    branches_that_overspend_together: {12},
    reservation_that_is_never_given_back: {12},
    adopted_turn_that_is_paid_twice: {12},
    kept_kv_that_is_paid_to_its_end: {12},
    kept_kv_whose_reserve_is_let_go_at_the_end: {12},
    erasure_that_leaves_the_data_key: {13},
}
"""Each bug with the invariants that may find it."""
