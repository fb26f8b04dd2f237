"""One turn on its gateway: on which decode worker it runs, which try it is, and what was given out.

    state      event -> next                                                     commands
    QUEUED     Opened -> same                                                    Place
               Placed -> PLACED                                                  SendStart(attempt + 1, forced)
               NobodyServes -> FAILED                                            Fail
    PLACED,    Outputs of this attempt, at the expected index -> STREAMING       Give
    STREAMING  ... with a finish -> FINISHED                                     Give, SendAcknowledge
               StreamBroken -> ATTACHING                                         SendAttach
               WorkerLost, Overdue, AttemptLost -> QUEUED                        SendCancel, Place(without it)
               a second crash -> FAILED(poison)                                  Fail
    ATTACHING  Outputs -> STREAMING                                              Give
               StreamBroken -> same, a few times without an output between       SendAttach
               WorkerLost, Overdue, AttemptLost -> QUEUED                        Place(without it)
    any        ClientGone -> CANCELLED                                           SendCancel
               DeadlinePassed -> FAILED                                          SendCancel, Fail

Output of an older attempt, or of an index already seen, changes nothing (invariants 1 and 7). The tokens given out
are forced in every later attempt, so the client never sees one twice and never two that disagree.
"""

import enum
from dataclasses import dataclass, replace

from runtime.domain.generation import Delta
from runtime.domain.messages import AttemptFailed, Output
from runtime.domain.records import quick
from runtime.domain.sequence import Ref
from runtime.errors import (
    BatonError,
    DeadlineExceeded,
    EngineFailed,
    IllegalTransition,
    Internal,
    NotFound,
    Poison,
    StaleAttempt,
    Unavailable,
)
from runtime.ids import BootId, TurnId


class TurnState(enum.Enum):
    QUEUED = "queued"
    PLACED = "placed"
    STREAMING = "streaming"
    ATTACHING = "attaching"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


_S = TurnState
_NEXT = {
    _S.QUEUED: {_S.PLACED, _S.CANCELLED, _S.FAILED},
    _S.PLACED: {_S.STREAMING, _S.ATTACHING, _S.QUEUED, _S.FINISHED, _S.CANCELLED, _S.FAILED},
    _S.STREAMING: {_S.STREAMING, _S.ATTACHING, _S.QUEUED, _S.FINISHED, _S.CANCELLED, _S.FAILED},
    _S.ATTACHING: {_S.ATTACHING, _S.STREAMING, _S.QUEUED, _S.FINISHED, _S.CANCELLED, _S.FAILED},
    _S.FINISHED: set(),
    _S.CANCELLED: set(),
    _S.FAILED: set(),
}
ENDED = frozenset({TurnState.FINISHED, TurnState.CANCELLED, TurnState.FAILED})
MAX_CRASHES = 2
MAX_ATTEMPTS = 16
MAX_ATTACHES = 8


# Events. `boot` is the generation of the worker that the event is about.


@dataclass(frozen=True, slots=True)
class Opened:
    pass


@dataclass(frozen=True, slots=True)
class Placed:
    boot: BootId


@dataclass(frozen=True, slots=True)
class NobodyServes:
    error: BatonError


@quick
@dataclass(frozen=True, slots=True)
class Arrived:
    output: Output


@dataclass(frozen=True, slots=True)
class AttemptLost:
    failed: AttemptFailed


@dataclass(frozen=True, slots=True)
class StreamBroken:
    boot: BootId


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """`crashed`: the process is known to be gone, so a turn that was running on it may have been what killed it."""

    boot: BootId
    crashed: bool


@dataclass(frozen=True, slots=True)
class Overdue:
    """Nothing came of this attempt for too long, though its stream is alive."""


@dataclass(frozen=True, slots=True)
class ClientGone:
    pass


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    pass


TurnEvent = (
    Opened | Placed | NobodyServes | Arrived | AttemptLost | StreamBroken | WorkerLost | Overdue | ClientGone
    | DeadlinePassed
)  # fmt: skip


# Commands


@dataclass(frozen=True, slots=True)
class Place:
    """Choose a decode worker, none of `exclude`; answered by Placed or NobodyServes."""

    exclude: frozenset[BootId]


@dataclass(frozen=True, slots=True)
class SendStart:
    boot: BootId
    ref: Ref
    forced: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendAttach:
    boot: BootId
    ref: Ref
    have: int


@dataclass(frozen=True, slots=True)
class SendCancel:
    boot: BootId
    ref: Ref


@dataclass(frozen=True, slots=True)
class SendAcknowledge:
    boot: BootId
    ref: Ref


@quick
@dataclass(frozen=True, slots=True)
class Give:
    """Hand this to the client."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class Fail:
    error: BatonError


TurnCommand = Place | SendStart | SendAttach | SendCancel | SendAcknowledge | Give | Fail


class Turn:
    """`given` are tokens that an earlier owner of the turn gave out, under a lower epoch."""

    def __init__(self, turn: TurnId, epoch: int = 1, given: tuple[int, ...] = ()) -> None:
        self.ref = Ref(turn, epoch, attempt=0)
        self.state = TurnState.QUEUED
        self.boot: BootId | None = None
        self._given: list[int] = [*given]
        self._suspects: set[BootId] = set()
        self._crashes = 0
        self._attaches = 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def on(self, event: TurnEvent) -> list[TurnCommand]:  # noqa: C901, PLR0911 - the table, a row each
        if self.ended:
            return self._late(event)
        match event:
            case Arrived(output):  # first, since it comes with every token
                return self._arrived(output)
            case Opened():
                return [Place(frozenset())]
            case Placed(boot):
                return self._placed(boot)
            case NobodyServes(error) if self.state is TurnState.QUEUED:
                return self._fail(error)
            case AttemptLost(failed):
                return self._attempt_lost(failed)
            case StreamBroken(boot):
                return self._broken(boot)
            case WorkerLost(boot, crashed):
                return self._worker_lost(boot, crashed=crashed)
            case Overdue() if self.boot is not None:
                return self._worker_lost(self.boot, crashed=False)
            case ClientGone():
                cancel = self._cancel()
                self._to(TurnState.CANCELLED)
                return cancel
            case DeadlinePassed():
                return [*self._cancel(), *self._fail(DeadlineExceeded("the deadline passed", field="deadline_ms"))]
            case _:
                return []

    def _late(self, event: TurnEvent) -> list[TurnCommand]:
        """After the end only one thing still matters: a final output sent again was not acknowledged yet."""
        match event:
            case Arrived(output) if output.ref == self.ref and output.finish and self.boot:
                return [SendAcknowledge(self.boot, self.ref)]
            case _:
                return []

    def _placed(self, boot: BootId) -> list[TurnCommand]:
        self._to(TurnState.PLACED)
        self.boot = boot
        self._attaches = 0
        self.ref = replace(self.ref, attempt=self.ref.attempt + 1)
        return [SendStart(boot, self.ref, tuple(self._given))]

    def _arrived(self, output: Output) -> list[TurnCommand]:
        known = len(self._given) - output.index
        if output.ref != self.ref or self.state is TurnState.QUEUED:
            return []
        if known < 0:
            gap = f"the decode worker skipped from output token {len(self._given)} to {output.index}"
            return [*self._cancel(), *self._again(Internal(gap))]
        fresh = output.tokens[known:]
        if known and output.finish is None and not fresh:
            return []
        self._given.extend(sampled.token for sampled in fresh)
        self._attaches = 0
        # Where the tokens' texts are not told apart all of it belongs to the last, which is never known.
        cut = output.ends[known - 1] if known and output.ends else 0
        text, ends = output.text[cut:], tuple([end - cut for end in output.ends[known:]])
        scores = None if known else output.scores
        attempt = output.ref.attempt
        delta = Delta(
            output.index + known, fresh, text, output.finish, output.handoff, attempt, self.boot, scores, ends
        )
        if output.finish is None:
            self._to(TurnState.STREAMING)
            return [Give(delta)]
        self._to(TurnState.FINISHED)
        assert self.boot is not None
        return [Give(delta), SendAcknowledge(self.boot, self.ref)]

    def _attempt_lost(self, failed: AttemptFailed) -> list[TurnCommand]:
        if failed.ref != self.ref or self.state is TurnState.QUEUED:
            return []
        self._crashes += isinstance(failed.error, EngineFailed)
        forgotten = isinstance(failed.error, NotFound | StaleAttempt)
        if not failed.error.status.retryable and not forgotten:
            return self._fail(failed.error)
        return self._again(failed.error, suspect=not forgotten)

    def _broken(self, boot: BootId) -> list[TurnCommand]:
        if boot != self.boot or self.state is TurnState.QUEUED:
            return []
        self._attaches += 1
        if self._attaches > MAX_ATTACHES:
            return self._worker_lost(boot, crashed=False)
        self._to(TurnState.ATTACHING)
        return [SendAttach(boot, self.ref, len(self._given))]

    def _worker_lost(self, boot: BootId, *, crashed: bool) -> list[TurnCommand]:
        if boot != self.boot or self.state is TurnState.QUEUED:
            return []
        # While PLACED, not even the Start reached it: that waits for the worker's first word on the stream.
        self._crashes += crashed and self.state is not TurnState.PLACED
        return [*self._cancel(), *self._again(Unavailable("the decode worker was lost", retry_after_ms=1000))]

    def _again(self, error: BatonError, *, suspect: bool = True) -> list[TurnCommand]:
        if self._crashes >= MAX_CRASHES:
            return self._fail(Poison(f"the request was running on {self._crashes} engines when they crashed"))
        if self.ref.attempt >= MAX_ATTEMPTS:
            tried = f"the request was tried {self.ref.attempt} times, at last: {error.message}"
            return self._fail(Unavailable(tried, retry_after_ms=1000))
        assert self.boot is not None
        if suspect:
            self._suspects.add(self.boot)
        self._to(TurnState.QUEUED)
        return [Place(frozenset(self._suspects))]

    def _cancel(self) -> list[TurnCommand]:
        if self.boot is None or self.state is TurnState.QUEUED:
            return []
        return [SendCancel(self.boot, self.ref)]

    def _fail(self, error: BatonError) -> list[TurnCommand]:
        self._to(TurnState.FAILED)
        return [Fail(error)]

    def _to(self, state: TurnState) -> None:
        if state not in _NEXT[self.state]:
            raise IllegalTransition("turn", self.state, state, self.ref)
        self.state = state
