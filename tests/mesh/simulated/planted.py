"""Bugs of requests and pages that the simulation has to find: switches that patch production code, or the world."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.clock import Timer
from runtime.domain import request as r
from runtime.domain import turn as t
from runtime.domain.batched import Phase
from runtime.domain.batching import Batcher
from runtime.domain.eviction import Rank
from runtime.domain.grants import Grants
from runtime.domain.messages import Output
from runtime.domain.retention import Quota, Refusal
from runtime.domain.sequence import Sampled, Sequence
from runtime.domain.steps import Generated, LetGo, Work
from runtime.engine.core import EngineCore, _Live
from runtime.engine.history import History
from runtime.ids import SequenceId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.mesh.simulated.fleet import Fleet
from runtime.mesh.simulated.onesided import OneSidedSender, OneSidedTransport
from runtime.roles.attempt import Attempt
from runtime.roles.gateway import GatewayRole
from runtime.roles.retaining import Retaining

Patch = pytest.MonkeyPatch


def late_one_sided_write(patch: Patch) -> None:
    """The sender confirms a stop while its posted writes are still in flight."""

    def stop(self: OneSidedSender, when_quiet: Callable[[], None]) -> None:
        self._done = True
        when_quiet()

    patch.setattr(OneSidedSender, "stop", stop)


def output_of_an_older_attempt_accepted(patch: Patch) -> None:
    original = t.Turn._arrived

    def arrived(self: t.Turn, output: Output) -> list[t.TurnCommand]:
        current, self.ref = self.ref, output.ref
        try:
            return original(self, output)
        finally:
            self.ref = current

    patch.setattr(t.Turn, "_arrived", arrived)
    # Attempts have to be given up that still speak: so nobody waits long for one.
    settings = Fleet._settings
    patch.setattr(Fleet, "_settings", lambda fleet: replace(settings(fleet), overdue_s=0.2))


def page_freed_while_landing(patch: Patch) -> None:
    original = Batcher.remove

    def remove(self: Batcher, sequence: SequenceId) -> bool:
        entry = self._entries.get(sequence)
        if entry is not None and entry.phase is Phase.AWAITING:
            self.pool.release(entry.table)
            return True
        return original(self, sequence)

    patch.setattr(Batcher, "remove", remove)


def staging_slot_reused_before_its_fence(patch: Patch) -> None:
    async def fence(self: OneSidedTransport, transfer: TransferId) -> None:
        self._expected.pop(transfer, None)
        self.staging.release(transfer)

    patch.setattr(OneSidedTransport, "fence", fence)


def half_written_frame_believed(patch: Patch) -> None:
    """A frame is announced before all of it is written, and nobody computes its checksum."""
    original = OneSidedSender._write

    def write(self: OneSidedSender, slot: int, index: int, data: bytes, begin: int) -> None:
        if begin and not self._done:
            self._announce(index, slot, b"")
        original(self, slot, index, data, begin)

    def no_digest(_codec: FrameCodec, _fields: object, _payload: object) -> int:
        return 0

    def announce_at_once(self: OneSidedSender, index: int, slot: int | None, data: bytes) -> None:
        self._announce_there(index, slot, data)

    patch.setattr(OneSidedSender, "_write", write)
    patch.setattr(OneSidedSender, "_announce", announce_at_once)
    patch.setattr(FrameCodec, "digest", no_digest)


def missing_deadline(patch: Patch) -> None:
    original = GatewayRole._after

    def after(self: GatewayRole, live: object, seconds: float, event: t.TurnEvent) -> None:
        if not isinstance(event, t.DeadlinePassed):
            original(self, live, seconds, event)  # type: ignore[arg-type]

    patch.setattr(GatewayRole, "_after", after)


def double_run(patch: Patch) -> None:
    original = r.Request.on

    def on(self: r.Request, event: r.RequestEvent) -> list[r.RequestCommand]:
        commands = original(self, event)
        return [*commands, r.RunSequence()] if isinstance(event, r.LandingComplete) and commands else commands

    patch.setattr(r.Request, "on", on)


def lost_cancel(patch: Patch) -> None:
    """The engine never hears that a sequence was given up."""
    original = Attempt._do

    def do(self: Attempt, command: r.RequestCommand) -> None:
        if not isinstance(command, r.CancelSequence):
            original(self, command)

    patch.setattr(Attempt, "_do", do)


def detached_sequence_never_closed(patch: Patch) -> None:
    original = Attempt._do

    def do(self: Attempt, command: r.RequestCommand) -> None:
        if not isinstance(command, r.ArmGrace):
            original(self, command)

    patch.setattr(Attempt, "_do", do)


def verified_page_dropped_twice(patch: Patch) -> None:
    original = Batcher.remove

    def remove(self: Batcher, sequence: SequenceId) -> bool:
        entry = self._entries.get(sequence)
        landed = [entry.table[index] for index in entry.landed] if entry and entry.table else []
        gone = original(self, sequence)
        self.pool.release(landed)
        return gone

    patch.setattr(Batcher, "remove", remove)


def repeated_token_after_failover(patch: Patch) -> None:
    """The next attempt gives its last forced token out again, and the gateway trusts the order of what comes."""
    submit, arrived = EngineCore._submit, t.Turn._arrived

    def submit_and_repeat(self: EngineCore, sequence: Sequence, work: Work) -> None:
        submit(self, sequence, work)
        if sequence.forced and sequence.id in self._live:
            again = Sampled(sequence.forced[-1])
            self._early.append(Generated(sequence.id, len(sequence.forced), (again,), "", None))

    def trusting(self: t.Turn, output: Output) -> list[t.TurnCommand]:
        return arrived(self, replace(output, index=len(self._given)))

    patch.setattr(EngineCore, "_submit", submit_and_repeat)
    patch.setattr(t.Turn, "_arrived", trusting)


def history_forgotten_at_failover(patch: Patch) -> None:
    """The next attempt does not know what the tokens before it forbid."""
    original = EngineCore._open

    def open_afresh(self: EngineCore, live: _Live) -> None:
        original(self, live)
        if live.history is not None:
            live.history = History(live.sequence.sampling, live.sequence.prompt, self._eos_ids)

    patch.setattr(EngineCore, "_open", open_afresh)


def granted_pages_evicted_as_others(patch: Patch) -> None:
    original = Rank.of

    def of(returns_s: float, cost: float, *, granted: bool) -> Rank:
        return original(returns_s, cost, granted=False)

    patch.setattr(Rank, "of", staticmethod(of))


def grant_that_outlives_its_time(patch: Patch) -> None:
    """Who keeps it never hears that its time is over."""

    def timer(self: Retaining, sequence: SequenceId, _milliseconds: int) -> Timer:
        return self._clock.call_later(1e6, lambda: self._engine.tell(LetGo(sequence)))

    patch.setattr(Retaining, "_timer", timer)


def quota_of_grants_forgotten(patch: Patch) -> None:
    def refusal(self: Grants, _tenant: bytes, pages: list[int], _quota: Quota) -> Refusal | None:
        return None if pages else Refusal.NO_PAGE

    patch.setattr(Grants, "refusal", refusal)


REQUEST_BUGS: dict[Callable[[Patch], None], set[int]] = {
    late_one_sided_write: {16},
    output_of_an_older_attempt_accepted: {7},
    page_freed_while_landing: {8, 16},
    staging_slot_reused_before_its_fence: {16},
    half_written_frame_believed: {8},
    missing_deadline: {17},
    double_run: {16},
    lost_cancel: {16},
    detached_sequence_never_closed: {16},
    verified_page_dropped_twice: {16},
    repeated_token_after_failover: {7},
    history_forgotten_at_failover: {8},
    granted_pages_evicted_as_others: {11},
    grant_that_outlives_its_time: {11},
    quota_of_grants_forgotten: {11},
}
"""Each bug with the invariants that may find it."""
