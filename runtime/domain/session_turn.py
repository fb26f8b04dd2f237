"""A session's turn at its owner: what came of it, what is durable, what was given out, and how it ends.

Persist before emit: nothing is published that the store has not acknowledged (invariant 7). One write is under way at a
time; what comes meanwhile goes together with the next.

    state    event -> next                                                   commands
    RUNNING  Came -> same                                                    Append, unless a write is under way
             Came with a finish, Broke, Halted -> ENDING                     Finish, once no write is under way
             Stored -> same                                                  Publish, Append what came meanwhile
             Came with more than it may spend, SliceDue -> same              Extend, before anything else is written
             Granted too little to go on -> ENDING, for its budget           StopGenerating, Finish with what fits
    both     Granted -> same                                                 HoldsUntil, Append or Finish
    ENDING   Stored of the append before -> same                             Publish, Finish
             Stored of the end -> ENDED                                      Publish, Rest
    both     StoreSilent -> same: it may have happened, so the same again    RetryLater; RetryDue: the same write
             GraceOver, while the store is silent -> ABANDONED               StopGenerating, GiveUp
             Fenced -> FENCED: another owner has it                          StopGenerating, GiveUp

The end is one transaction with the last tokens, so there is no turn whose tokens are all there and whose end is not.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.domain.generation import Delta, Handoffs, first_of
from runtime.domain.retention import NO_RETENTION, Pause, Promise
from runtime.domain.reuse import Past
from runtime.domain.sequence import FinishReason, Ref
from runtime.domain.session_ending import Calls, End, Kept, Ran, ending_of, pause_of
from runtime.domain.sessions import Ending, Halt, StopReason, TurnEvent, TurnRecord, TurnStatus
from runtime.domain.spending import Amounts, Measure, Purse
from runtime.domain.tools import ToolCall
from runtime.errors import BatonError, IllegalTransition, Unavailable

if TYPE_CHECKING:
    from runtime.ids import BootId


class SessionTurnState(enum.Enum):
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    FENCED = "fenced"
    ABANDONED = "abandoned"


_S = SessionTurnState
_NEXT = {
    _S.RUNNING: {_S.ENDING, _S.FENCED, _S.ABANDONED},
    _S.ENDING: {_S.ENDED, _S.FENCED, _S.ABANDONED},
}
OVER = frozenset({_S.ENDED, _S.FENCED, _S.ABANDONED})


def no_calls(_tokens: Sequence[int], text: str) -> tuple[str, tuple[ToolCall, ...]]:
    return text, ()


# Events


@dataclass(frozen=True, slots=True)
class Came:
    delta: Delta


@dataclass(frozen=True, slots=True)
class Broke:
    """The generation failed and is not tried again."""

    error: BatonError


@dataclass(frozen=True, slots=True)
class Halted:
    how: Halt


@dataclass(frozen=True, slots=True)
class Stored:
    pass


@dataclass(frozen=True, slots=True)
class SliceDue:
    """What the turn holds of its session's budget lasts not much longer."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What it holds from now on."""

    held: Amounts


@dataclass(frozen=True, slots=True)
class StoreSilent:
    pass


@dataclass(frozen=True, slots=True)
class RetryDue:
    pass


@dataclass(frozen=True, slots=True)
class GraceOver:
    pass


@dataclass(frozen=True, slots=True)
class Fenced:
    """The store took a write for good as one that must not be."""

    error: BatonError


SessionTurnEvent = Came | Broke | Halted | Stored | SliceDue | Granted | StoreSilent | RetryDue | GraceOver | Fenced


# Commands


@dataclass(frozen=True, slots=True)
class Append:
    event: TurnEvent


@dataclass(frozen=True, slots=True)
class Extend:
    """Ask to hold `want` in all; `took` is the time and KV so far."""

    want: Amounts
    took: Amounts


@dataclass(frozen=True, slots=True)
class HoldsUntil:
    """Ask for more in so many milliseconds."""

    milliseconds: int


@dataclass(frozen=True, slots=True)
class Finish:
    ending: Ending
    tokens: tuple[int, ...]
    events: tuple[TurnEvent, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """What `published` holds, and `ending`, may be given out now."""


@dataclass(frozen=True, slots=True)
class StopGenerating:
    pass


@dataclass(frozen=True, slots=True)
class Rest:
    """The session waits for something now: tell the worker of this attempt, and for how long to keep what it keeps."""

    boot: "BootId"
    attempt: Ref
    pause: Pause
    keep_ms: int


@dataclass(frozen=True, slots=True)
class RetryLater:
    pass


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing more of this turn comes from here."""

    error: BatonError


SessionTurnCommand = Append | Extend | HoldsUntil | Finish | Publish | Rest | StopGenerating | RetryLater | GiveUp


class SessionTurn:
    """`persisted` are the events of an earlier owner; `token_bytes` the KV of a token; `past` what its branch had."""

    def __init__(
        self,
        record: TurnRecord,
        persisted: Sequence[TurnEvent],
        kept: Kept,
        calls: Calls = no_calls,
        token_bytes: int = 0,
        past: Past | None = None,
    ) -> None:
        prepared = record.prepared
        assert prepared is not None, "a turn is prepared before it runs"
        self.record = record
        self.state = SessionTurnState.RUNNING
        self.published: list[TurnEvent] = [*persisted]
        self.ending: Ending | None = None
        self._kept = kept
        self._calls = calls
        self._past = past
        self._tokens = [token for event in persisted for token in event.tokens]
        self._pending: list[Delta] = []
        self._writing: Append | Extend | Finish | None = None
        self._end: End | None = None
        self._prompt = prepared.context + len(prepared.prompt)
        keep_ms = (record.asked.retention or NO_RETENTION).longest_ms
        self._purse = Purse(record.reserve.held, self._prompt, prepared.max_tokens, token_bytes, keep_ms)
        self._ran = record.reserve.took
        self._slice_due = False
        self._handoffs = Handoffs()
        self._attempts = 1
        self._boot: BootId | None = None
        self._promise: Promise | None = None

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def given(self) -> tuple[int, ...]:
        """All tokens that are durable: whoever generates on is forced to them."""
        return tuple(self._tokens)

    @property
    def tokens(self) -> int:
        """Of its context with the answer so far: what has KV."""
        return self._prompt + self._output

    @property
    def holds_for_ms(self) -> int:
        """When to say that its slice is due."""
        return self._purse.ask_in_ms(self._output, self._ran)

    @property
    def _output(self) -> int:
        return len(self._tokens) + sum(len(delta.tokens) for delta in self._pending)

    def on(self, event: SessionTurnEvent, ran: Amounts | None = None) -> list[SessionTurnCommand]:  # noqa: C901, PLR0911 - the table, a row each
        """`ran` is the time and KV that the turn took so far, where that has changed."""
        if self.over:
            return []
        self._ran = ran or self._ran
        match event:
            case Came(delta) if self.state is SessionTurnState.RUNNING:
                return self._came(delta)
            case Broke(error) if self.state is SessionTurnState.RUNNING:
                return self._ends(End(TurnStatus.FAILED, error=error))
            case Halted(how) if self.state is SessionTurnState.RUNNING:
                return self._halted(how)
            case Stored():
                return self._stored()
            case SliceDue() if self.state is SessionTurnState.RUNNING:
                self._slice_due = True
                return self._write()
            case Granted(held):
                return self._granted(held)
            case StoreSilent():
                return [RetryLater()]
            case RetryDue() if self._writing is not None:
                return [self._writing]
            case GraceOver():
                silent = Unavailable("the session store does not answer; the turn goes on later", retry_after_ms=1000)
                return self._leave(SessionTurnState.ABANDONED, silent)
            case Fenced(error):
                return self._leave(SessionTurnState.FENCED, error)
            case _:
                return []

    def _came(self, delta: Delta) -> list[SessionTurnCommand]:
        self._pending.append(delta)
        self._handoffs.add(delta)
        self._attempts = delta.attempt
        self._boot = delta.boot or self._boot
        self._promise = delta.promise
        if delta.finish is None:
            return self._write()
        stop = StopReason.LENGTH if delta.finish is FinishReason.LENGTH else StopReason.END_TURN
        return self._ends(End(TurnStatus.COMMITTED, stop))

    def _halted(self, how: Halt) -> list[SessionTurnCommand]:
        if how is Halt.INTERRUPT:
            return [StopGenerating(), *self._ends(End(TurnStatus.COMMITTED, StopReason.INTERRUPTED))]
        return [StopGenerating(), *self._ends(End(TurnStatus.CANCELLED))]

    def _ends(self, end: End) -> list[SessionTurnCommand]:
        self._to(SessionTurnState.ENDING)
        self._end = end
        return self._write()

    def _granted(self, held: Amounts) -> list[SessionTurnCommand]:
        assert isinstance(self._writing, Extend), "only what was asked for is granted"
        self._writing, self._slice_due = None, False
        self._purse.take(held)
        if not self._purse.fits(self._output):
            return self._cut()
        if self.state is SessionTurnState.RUNNING and self._purse.left_ms(self._output, self._ran) <= 0:
            spent = End(TurnStatus.COMMITTED, StopReason.BUDGET, limit=self._purse.out_of(self._ran))
            return [StopGenerating(), *self._ends(spent)]
        return [HoldsUntil(self.holds_for_ms), *self._write()]

    def _cut(self) -> list[SessionTurnCommand]:
        """No more tokens are to be had: what does not fit was never given out, and is not spent."""
        self._pending = first_of(self._pending, self._purse.held.completion_tokens - len(self._tokens))
        spent = End(TurnStatus.COMMITTED, StopReason.BUDGET, limit=Measure.COMPLETION)
        if self._end is None:
            return [StopGenerating(), *self._ends(spent)]
        if self._end.stop in (StopReason.END_TURN, StopReason.LENGTH):
            self._end = spent
        return self._write()

    def _write(self) -> list[SessionTurnCommand]:
        if self._writing is not None:
            return []
        lacks = not self._purse.fits(self._output)
        if lacks or (self._end is None and (self._slice_due or self._purse.low(self._output))):
            self._writing = Extend(self._purse.want(self._output, self._ran), self._ran)
            return [self._writing]
        event = self._gathered()
        if self._end is not None:
            self._writing = self._finish(event)
        elif event is not None:
            self._writing = Append(event)
        else:
            return []
        return [self._writing]

    def _gathered(self) -> TurnEvent | None:
        """What came since the last write, as one event."""
        pending, self._pending = self._pending, []
        tokens = tuple(sampled.token for delta in pending for sampled in delta.tokens)
        text = "".join(delta.text for delta in pending)
        if not tokens and not text:
            return None
        return TurnEvent(len(self.published) + 1, len(self._tokens), tokens, text)

    def _finish(self, event: TurnEvent | None) -> Finish:
        assert self._end is not None
        events = (*self.published, *(() if event is None else (event,)))
        tokens = (*self._tokens, *(() if event is None else event.tokens))
        ran = Ran(self._prompt, self._handoffs, self._purse, self._ran, self._attempts, self._boot, self._promise)
        text = "".join(each.text for each in events)
        ending = ending_of(self.record, self._end, ran, self._past, tokens, text, self._kept, self._calls)
        return Finish(ending, tokens, events)

    def _stored(self) -> list[SessionTurnCommand]:
        written, self._writing = self._writing, None
        match written:
            case Append(event):
                self.published.append(event)
                self._tokens.extend(event.tokens)
                return [Publish(), *self._write()]
            case Finish(ending, tokens, events):
                self.published = [*events]
                self._tokens = [*tokens]
                self.ending = ending
                self._to(SessionTurnState.ENDED)
                return [Publish(), *self._rest(ending)]
            case _:
                raise IllegalTransition("session turn", self.state, "Stored", self.record.id)

    def _rest(self, ending: Ending) -> list[SessionTurnCommand]:
        if ending.status is not TurnStatus.COMMITTED or ending.boot is None:
            return []
        attempt = Ref(self.record.id, self.record.epoch, ending.attempts)
        return [Rest(ending.boot, attempt, pause_of(ending), 0 if ending.retained is None else ending.retained.keep_ms)]

    def _leave(self, state: SessionTurnState, error: BatonError) -> list[SessionTurnCommand]:
        self._to(state)
        return [StopGenerating(), GiveUp(error)]

    def _to(self, state: SessionTurnState) -> None:
        if state not in _NEXT.get(self.state, ()):
            raise IllegalTransition("session turn", self.state, state, self.record.id)
        self.state = state
