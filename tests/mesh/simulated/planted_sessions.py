"""Bugs of sessions, of membership and of gateways that the simulation has to find, as in `planted.py`."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from runtime.domain import request as r
from runtime.domain import session_turn as st
from runtime.domain.breaking import Breakers, RetryBudget, _Breaker
from runtime.domain.membership import Belief
from runtime.domain.messages import View
from runtime.domain.sequence import FinishReason
from runtime.domain.sessions import Halt, Progress, TurnRecord, TurnStatus
from runtime.domain.spending import Amounts
from runtime.errors import BatonError, StaleAttempt, Unavailable
from runtime.ids import GatewayId, TurnId
from runtime.roles.decode import DecodeRole
from runtime.roles.session_turn import RunningTurn
from runtime.roles.sessions import SessionRole
from runtime.store import owning, running
from runtime.store.looking import turn_of
from runtime.store.sealing import Seal, seal_of
from runtime.store.transaction import Row, Transaction

Patch = pytest.MonkeyPatch


def double_adoption(patch: Patch) -> None:
    """Who takes a turn over gets it under the epoch that its owner has, who goes on."""

    async def taken_over(tx: Transaction, turn: TurnRecord, owner: GatewayId) -> tuple[TurnRecord, ...]:
        await tx.run("UPDATE turns SET owner = $2 WHERE id = $1", turn.id, owner)
        adopted = await turn_of(tx, turn.id)
        return () if adopted is None else (adopted,)

    patch.setattr(owning, "_taken_over", taken_over)


def commit_with_a_stale_epoch(patch: Patch) -> None:
    """The store asks which turn is live, and not under which epoch."""

    async def fence(tx: Transaction, turn: TurnRecord) -> Seal:
        sql = "SELECT live FROM branches WHERE session = $1 AND name = $2"
        row = await tx.row(sql, turn.session, turn.branch)
        if row is None or row[0] != turn.id:
            raise StaleAttempt(f"turn {turn.id} is not live", field="turn")
        return await seal_of(tx, turn.session)

    patch.setattr(running, "_fence", fence)


def event_delivered_again_after_resume(patch: Patch) -> None:
    """The other gateway begins with the event that the client has already."""
    original = SessionRole.watch

    def watch(self: SessionRole, record: TurnRecord, after: int) -> AsyncIterator[Progress]:
        return original(self, record, max(after - 1, 0))

    patch.setattr(SessionRole, "watch", watch)


def lost_acknowledgement_taken_for_failure(patch: Patch) -> None:
    """An end that the store did not acknowledge is told to have failed."""
    original = RunningTurn._write

    async def write(self: RunningTurn, command: st.Append | st.Finish) -> None:
        if isinstance(command, st.Append):
            await original(self, command)
            return
        try:
            await self._role.store.finish(self.turn.record, command.ending, command.tokens, command.events)
        except Unavailable as error:
            told = replace(command.ending, status=TurnStatus.FAILED, error=error)
            self.turn._writing = replace(command, ending=told)
        except BatonError as error:
            self.feed(st.Fenced(error))
            return
        self.feed(st.Stored())

    patch.setattr(RunningTurn, "_write", write)


class _Skewed:
    """A transaction that takes its caller's clock for the store's."""

    def __init__(self, tx: Transaction, owner: GatewayId) -> None:
        self.seals = tx.seals
        self._tx = tx
        self._now = f"(now_ms() + {(sum(map(ord, owner)) % 7 - 3) * 100_000})"

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        return await self._tx.rows(sql.replace("now_ms()", self._now), *arguments)

    async def row(self, sql: str, *arguments: object) -> Row | None:
        return await self._tx.row(sql, *arguments)

    async def run(self, sql: str, *arguments: object) -> int:
        return await self._tx.run(sql.replace("now_ms()", self._now), *arguments)

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None:
        await self._tx.run_many(sql, arguments)


def lease_by_the_local_clock(patch: Patch) -> None:
    """Owners' leases are written and judged by the gateways' own clocks, minutes apart."""
    beat, adopt = owning.beat, owning.adopt

    async def local_beat(tx: Transaction, owner: GatewayId, lease_s: float) -> dict[TurnId, Halt]:
        return await beat(_Skewed(tx, owner), owner, lease_s)

    async def local_adopt(
        tx: Transaction, owner: GatewayId, mine: frozenset[TurnId], limit: int
    ) -> tuple[TurnRecord, ...]:
        return await adopt(_Skewed(tx, owner), owner, mine, limit)

    patch.setattr(owning, "beat", local_beat)
    patch.setattr(owning, "adopt", local_adopt)


def event_published_before_it_is_stored(patch: Patch) -> None:
    original = st.SessionTurn._write

    def write(self: st.SessionTurn) -> list[st.SessionTurnCommand]:
        commands = original(self)
        for command in commands:
            if isinstance(command, st.Append):
                self.published.append(command.event)
                return [*commands, st.Publish()]
        return commands

    def stored(self: st.SessionTurn) -> list[st.SessionTurnCommand]:
        if isinstance(self._writing, st.Append):
            self._tokens.extend(self._writing.event.tokens)
            self._writing = None
            return [st.Publish(), *self._write()]
        return finished(self)

    finished = st.SessionTurn._stored
    patch.setattr(st.SessionTurn, "_write", write)
    patch.setattr(st.SessionTurn, "_stored", stored)


def fenced_owner_that_still_emits(patch: Patch) -> None:
    """Refused by the store, it gives out what it could not write."""
    original = st.SessionTurn.on

    def on(self: st.SessionTurn, event: st.SessionTurnEvent, ran: Amounts | None = None) -> list[st.SessionTurnCommand]:
        if isinstance(event, st.Fenced) and not self.over and self._writing is not None:
            return original(self, st.Stored(), ran)
        return original(self, event, ran)

    patch.setattr(st.SessionTurn, "on", on)


def adopter_that_forgets_what_was_given(patch: Patch) -> None:
    """It goes on as if nothing were durable."""
    original = SessionRole._run

    def run(self: SessionRole, record: TurnRecord, persisted: Sequence[object], context: object) -> None:
        original(self, record, (), context)  # type: ignore[arg-type]

    patch.setattr(SessionRole, "_run", run)


def absent_in_a_new_incarnation_is_gone(patch: Patch) -> None:
    def take(self: Belief, new: View) -> View:
        self.view = new
        return new

    patch.setattr(Belief, "take", take)


def drain_that_drops(patch: Patch) -> None:
    """What still runs when the grace is over is told to be complete."""

    def give_up(self: DecodeRole, _error: BatonError) -> None:
        for attempt in list(self._attempts.values()):
            request = attempt.request
            given = len(request.start.forced) + sum(len(output.tokens) for output in request._log)
            attempt.feed(r.NewTokens(given, (), "", FinishReason.LENGTH, None))
        self._flush()

    patch.setattr(DecodeRole, "give_up", give_up)


def breaker_that_never_half_opens(patch: Patch) -> None:
    def closed_to_all(self: Breakers, _breaker: _Breaker, _now: float) -> bool:
        return True

    patch.setattr(Breakers, "_closed_to_all", closed_to_all)


def retry_budget_ignored(patch: Patch) -> None:
    def try_take(self: RetryBudget, _now: float) -> bool:
        return True

    patch.setattr(RetryBudget, "try_take", try_take)


SESSION_BUGS: dict[Callable[[Patch], None], set[int]] = {
    double_adoption: {1},
    commit_with_a_stale_epoch: {1},
    event_delivered_again_after_resume: {7},
    lost_acknowledgement_taken_for_failure: {7},
    lease_by_the_local_clock: {15},
    event_published_before_it_is_stored: {7},
    fenced_owner_that_still_emits: {7},
    adopter_that_forgets_what_was_given: {7, 17},
    absent_in_a_new_incarnation_is_gone: {18},
    drain_that_drops: {7},
    breaker_that_never_half_opens: {19},
    retry_budget_ignored: {19},
}
"""Each bug with the invariants that may find it."""
