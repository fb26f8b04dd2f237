"""Bugs of tool calls, of budgets and of erasures that the simulation has to find, as in `planted.py`."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.messages import Worker
from runtime.domain.sessions import Branch, Ending, Prepared, TurnRecord
from runtime.domain.settling import resolved
from runtime.domain.spending import NOTHING, Account
from runtime.domain.tools import CallState, Pending, ToolResult
from runtime.ids import SessionId
from runtime.roles.erasing import ErasingRole
from runtime.roles.forgetting import Forgetting
from runtime.store import accounting, erasing, opening, running, submitting
from runtime.store.content import OF_A_SESSION
from runtime.store.transaction import Transaction

Patch = pytest.MonkeyPatch


def call_that_is_resolved_again(patch: Patch) -> None:
    """The store takes a result for a call that has one."""

    def again(pending: Pending, result: ToolResult, field: str) -> Pending:
        return resolved(pending if pending.open else replace(pending, state=CallState.PENDING), result, field)

    patch.setattr(submitting, "resolved", again)


def turn_opened_on_the_calls_as_they_were(patch: Patch) -> None:
    """A result that came while the turn was prepared is not told."""

    async def is_ready(_tx: Transaction, prepared: Prepared, branch: Branch, _session: SessionId) -> bool:
        return prepared.base == branch.place

    patch.setattr(opening, "_is_ready", is_ready)


def late_result_that_is_taken(patch: Patch) -> None:
    """The model is told that nothing came in time, and the store does not write that down."""

    async def forgets(_tx: Transaction, _session: SessionId, _branch: Branch) -> None:
        pass

    patch.setattr(opening, "expire", forgets)
    patch.setattr(submitting, "expire", forgets)


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


def worker_that_is_told_once(patch: Patch) -> None:
    """Who did not answer is not told again."""
    original = ErasingRole._tell_one

    async def tell_one(self: ErasingRole, session: SessionId, worker: Worker) -> bool:
        await original(self, session, worker)
        self._told.setdefault(session, set()).add(worker.boot)
        return True

    patch.setattr(ErasingRole, "_tell_one", tell_one)


def late_start_of_an_erased_session(patch: Patch) -> None:
    """A worker drops what it has, and takes what comes after that."""

    def bury(self: Forgetting, _session: SessionId) -> None:
        pass

    patch.setattr(Forgetting, "bury", bury)


CONTRACT_BUGS: dict[Callable[[Patch], None], set[int]] = {
    call_that_is_resolved_again: {9},
    turn_opened_on_the_calls_as_they_were: {9},
    late_result_that_is_taken: {9},
    branches_that_overspend_together: {12},
    reservation_that_is_never_given_back: {12},
    adopted_turn_that_is_paid_twice: {12},
    erasure_that_leaves_the_data_key: {13},
    worker_that_is_told_once: {13},
    late_start_of_an_erased_session: {13},
}
"""Each bug with the invariants that may find it."""
