"""Bugs of budgets and of erasures that the simulation has to find, as in `planted.py`."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.sessions import Ending, TurnRecord
from runtime.domain.spending import NOTHING, Account
from runtime.store import accounting, erasing, running
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


def erasure_that_leaves_the_data_key(patch: Patch) -> None:
    patch.setattr(erasing, "OF_A_SESSION", tuple(name for name in OF_A_SESSION if name != "session_keys"))


CONTRACT_BUGS: dict[Callable[[Patch], None], set[int]] = {
    branches_that_overspend_together: {12},
    reservation_that_is_never_given_back: {12},
    adopted_turn_that_is_paid_twice: {12},
    erasure_that_leaves_the_data_key: {13},
}
"""Each bug with the invariants that may find it."""
