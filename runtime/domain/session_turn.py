"""A session's turn at its owner: what came of it, what is durable, what was given out, and how it ends.

Persist before emit: nothing is published that the store has not acknowledged (invariant 7). One write is under way at a
time; what comes meanwhile goes together with the next.

    state    event -> next                                                   commands
    RUNNING  Came -> same                                                    Append, unless a write is under way
             Came with a finish, Broke, Halted -> ENDING                     Finish, once no write is under way
             Stored -> same                                                  Publish, Append what came meanwhile
    ENDING   Stored of the append before -> same                             Publish, Finish
             Stored of the end -> ENDED                                      Publish
    both     StoreSilent -> same: it may have happened, so the same again    RetryLater; RetryDue: the same write
             GraceOver, while the store is silent -> ABANDONED               StopGenerating, GiveUp
             Fenced -> FENCED: another owner has it                          StopGenerating, GiveUp

The end is one transaction with the last tokens, so there is no turn whose tokens are all there and whose end is not.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.domain.generation import Delta, Handoffs
from runtime.domain.sequence import FinishReason
from runtime.domain.sessions import Ending, Halt, Spent, StopReason, TurnEvent, TurnRecord, TurnStatus
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
    _S.ENDED: set(),
    _S.FENCED: set(),
    _S.ABANDONED: set(),
}
OVER = frozenset({_S.ENDED, _S.FENCED, _S.ABANDONED})

Kept = Callable[[Sequence[int], str, bool], int]
"""Given all output tokens, the text shown for them and whether it was stopped: how many of them stay in the context."""

Calls = Callable[[Sequence[int], str], tuple[str, tuple[ToolCall, ...]]]
"""Given the same: the text beside the calls that are in it, and these."""


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


SessionTurnEvent = Came | Broke | Halted | Stored | StoreSilent | RetryDue | GraceOver | Fenced


# Commands


@dataclass(frozen=True, slots=True)
class Append:
    event: TurnEvent


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
class RetryLater:
    pass


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing more of this turn comes from here."""

    error: BatonError


SessionTurnCommand = Append | Finish | Publish | StopGenerating | RetryLater | GiveUp


class SessionTurn:
    """`persisted` are the events of an earlier owner."""

    def __init__(self, record: TurnRecord, persisted: Sequence[TurnEvent], kept: Kept, calls: Calls = no_calls) -> None:
        self.record = record
        self.state = SessionTurnState.RUNNING
        self.published: list[TurnEvent] = [*persisted]
        self.ending: Ending | None = None
        self._kept = kept
        self._calls = calls
        self._tokens = [token for event in persisted for token in event.tokens]
        self._pending: list[Delta] = []
        self._writing: Append | Finish | None = None
        self._end: tuple[TurnStatus, StopReason | None, BatonError | None] | None = None
        self._handoffs = Handoffs()
        self._attempts = 1
        self._boot: BootId | None = None

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def given(self) -> tuple[int, ...]:
        """All tokens that are durable: whoever generates on is forced to them."""
        return tuple(self._tokens)

    def on(self, event: SessionTurnEvent) -> list[SessionTurnCommand]:  # noqa: C901, PLR0911 - the table, a row each
        if self.over:
            return []
        match event:
            case Came(delta) if self.state is SessionTurnState.RUNNING:
                return self._came(delta)
            case Broke(error) if self.state is SessionTurnState.RUNNING:
                return self._ends(TurnStatus.FAILED, None, error)
            case Halted(how) if self.state is SessionTurnState.RUNNING:
                return self._halted(how)
            case Stored():
                return self._stored()
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
        if delta.finish is None:
            return self._write()
        stop = StopReason.LENGTH if delta.finish is FinishReason.LENGTH else StopReason.END_TURN
        return self._ends(TurnStatus.COMMITTED, stop, None)

    def _halted(self, how: Halt) -> list[SessionTurnCommand]:
        if how is Halt.INTERRUPT:
            return [StopGenerating(), *self._ends(TurnStatus.COMMITTED, StopReason.INTERRUPTED, None)]
        return [StopGenerating(), *self._ends(TurnStatus.CANCELLED, None, None)]

    def _ends(self, status: TurnStatus, stop: StopReason | None, error: BatonError | None) -> list[SessionTurnCommand]:
        self._to(SessionTurnState.ENDING)
        self._end = status, stop, error
        return self._write()

    def _write(self) -> list[SessionTurnCommand]:
        if self._writing is not None:
            return []
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
        status, stop, error = self._end
        events = (*self.published, *(() if event is None else (event,)))
        tokens = (*self._tokens, *(() if event is None else event.tokens))
        prepared = self.record.prepared
        assert prepared is not None, "a turn is prepared before it runs"
        prompt = prepared.context + len(prepared.prompt)
        spent = Spent(prompt, self._handoffs.cached_tokens(prompt), len(tokens))
        ending = Ending(
            status, stop, error, 0, spent, self._attempts, self._boot, self._handoffs.newest, prepared.drift
        )
        if status is TurnStatus.COMMITTED:
            text = "".join(each.text for each in events)
            said, calls = self._calls(tokens, text)
            stop = StopReason.TOOL_CALLS if calls and stop is StopReason.END_TURN else stop
            kept = self._kept(tokens, text, stop is not StopReason.LENGTH)
            ending = replace(ending, stop=stop, kept=kept, calls=calls, said=said if calls else "")
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
                return [Publish()]
            case None:
                raise IllegalTransition("session turn", self.state, "Stored", self.record.id)

    def _leave(self, state: SessionTurnState, error: BatonError) -> list[SessionTurnCommand]:
        self._to(state)
        return [StopGenerating(), GiveUp(error)]

    def _to(self, state: SessionTurnState) -> None:
        if state not in _NEXT[self.state]:
            raise IllegalTransition("session turn", self.state, state, self.record.id)
        self.state = state
