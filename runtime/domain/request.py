"""A running request on its decode worker, from the gateway's Start to its last output: the spine of Baton.

Owns where one attempt stands and what has to happen next; never waits, computes or sends. Events in, commands out:

    state         event -> next                                                        commands
    NEW           Begin, suffix short, prompt scored, nobody to prefill -> RUNNING     SubmitWork(local)
                  Begin -> RESERVING                                                   SubmitWork(awaiting)
    RESERVING     Reserved -> LANDING                                                  LoadPages, else OpenLanding
                  NoRoom -> WAITING_ROOM
                  Generated(finish), as forced tokens can -> FINISHED                  Emit, ArmGrace
    WAITING_ROOM  PagesFreed -> RESERVING                                              SubmitWork(awaiting)
    LANDING       PageLoaded, FrameVerified -> same                                    Land
                  LoadEnded -> as after Reserved                                       OpenLanding or RunSequence
                  LandingComplete -> RUNNING                                           RunSequence
                  LandingLost, candidates left -> LANDING, what is missing             FenceLanding, OpenLanding
                  LandingLost -> RUNNING, the engine recomputes what is missing        FenceLanding, RunSequence
    RUNNING       Generated -> same                                                    Emit
                  Generated(finish) -> FINISHED                                        Emit, ArmGrace
    FINISHED      Acknowledged or GraceOver -> CLOSED                                  Forget
    before RUNNING   GatewayLost -> CLOSED                                             CancelSequence, ...
    RUNNING, FINISHED  GatewayLost -> the same, detached                               ArmGrace
                  Attached(have) -> attached                                           Emit from `have` on
                  detached, GraceOver or the buffer full -> CLOSED                     CancelSequence, Forget
    any           Cancelled, DeadlinePassed, Superseded, EngineLost, SequenceLost -> CLOSED

All outputs are kept until the gateway acknowledged the last, because a stream that breaks may lose the tail of what
was written to it. Every late event is legal and answered with what releases the thing it brought.
"""

import enum
from dataclasses import dataclass, replace

from runtime.domain.loading import LoadEnded, LoadPages, PageLoaded
from runtime.domain.messages import AttemptFailed, Output, PrefillCandidate, PrefillDone, Start
from runtime.domain.records import quick
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref, Sampled
from runtime.domain.sources import Policy, Sources
from runtime.domain.steps import DecodeAwaiting, DecodeLocal, Frame, Work
from runtime.errors import BatonError, Cancelled, DeadlineExceeded, IllegalTransition, StaleAttempt


class RequestState(enum.Enum):
    NEW = "new"
    RESERVING = "reserving"
    WAITING_ROOM = "waiting_room"
    LANDING = "landing"
    RUNNING = "running"
    FINISHED = "finished"
    CLOSED = "closed"


_S = RequestState
_NEXT = {
    _S.NEW: {_S.RESERVING, _S.RUNNING, _S.CLOSED},
    _S.RESERVING: {_S.LANDING, _S.WAITING_ROOM, _S.FINISHED, _S.CLOSED},
    _S.WAITING_ROOM: {_S.RESERVING, _S.CLOSED},
    _S.LANDING: {_S.RUNNING, _S.CLOSED},
    _S.RUNNING: {_S.FINISHED, _S.CLOSED},
    _S.FINISHED: {_S.CLOSED},
    _S.CLOSED: set(),
}


# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """`cached_tokens` of the prompt are in the prefix cache, `stored_tokens` there or in a tier; advisory figures."""

    cached_tokens: int
    stored_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RoomReserved:
    local_tokens: int


@dataclass(frozen=True, slots=True)
class RoomRefused:
    pass


@dataclass(frozen=True, slots=True)
class PagesFreed:
    pass


@dataclass(frozen=True, slots=True)
class FrameVerified:
    """`transfer` numbers this request's transfers; one that is not the current brings nothing."""

    transfer: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class LandingComplete:
    transfer: int


@dataclass(frozen=True, slots=True)
class LandingLost:
    """The transfer failed, its peer refused or died, or it made no progress."""

    transfer: int
    reason: str


@dataclass(frozen=True, slots=True)
class PeerDone:
    """The prefill worker's own report; the pages themselves may still be on their way."""

    transfer: int
    done: PrefillDone


@dataclass(frozen=True, slots=True)
class InBatch:
    cached_tokens: int
    landed_tokens: int


@quick
@dataclass(frozen=True, slots=True)
class NewTokens:
    index: int
    tokens: tuple[Sampled, ...]
    text: str
    finish: FinishReason | None
    scores: PromptScores | None = None


@dataclass(frozen=True, slots=True)
class SequenceLost:
    """The engine gave this sequence up, or died."""

    error: BatonError


@dataclass(frozen=True, slots=True)
class GatewayLost:
    pass


@dataclass(frozen=True, slots=True)
class Attached:
    have: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    pass


@dataclass(frozen=True, slots=True)
class CancelAsked:
    pass


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    pass


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer attempt of the same turn began."""


@dataclass(frozen=True, slots=True)
class GraceOver:
    pass


RequestEvent = (
    Begin | RoomReserved | RoomRefused | PagesFreed | PageLoaded | LoadEnded | FrameVerified | LandingComplete
    | LandingLost | PeerDone | InBatch | NewTokens | SequenceLost | GatewayLost | Attached | Acknowledged | CancelAsked
    | DeadlinePassed | Superseded | GraceOver
)  # fmt: skip


# Commands


@dataclass(frozen=True, slots=True)
class SubmitWork:
    work: Work


@dataclass(frozen=True, slots=True)
class OpenLanding:
    """Issue a ticket for the pages beyond `local_tokens` that are not `verified`, and call `peer` with it."""

    transfer: int
    peer: PrefillCandidate
    local_tokens: int
    verified: frozenset[int]


@dataclass(frozen=True, slots=True)
class LandFrame:
    frame: Frame


@dataclass(frozen=True, slots=True)
class FenceLanding:
    """Give the transfer up: stop its peer, and let nothing of it arrive."""

    transfer: int


@dataclass(frozen=True, slots=True)
class RunSequence:
    pass


@dataclass(frozen=True, slots=True)
class CancelSequence:
    pass


@quick
@dataclass(frozen=True, slots=True)
class Emit:
    output: Output | AttemptFailed


@dataclass(frozen=True, slots=True)
class ArmGrace:
    pass


@dataclass(frozen=True, slots=True)
class Forget:
    """The request is closed: drop it and its timers."""


RequestCommand = (
    SubmitWork | LoadPages | OpenLanding | LandFrame | FenceLanding | RunSequence | CancelSequence | Emit | ArmGrace
    | Forget
)  # fmt: skip


class Request:
    def __init__(self, start: Start, policy: Policy) -> None:
        self.start = start
        self.state = RequestState.NEW
        self.detached = False
        self.transfer = 0
        told = start.remote_min_tokens
        self._policy = policy if told is None else replace(policy, remote_min_tokens=told)
        self._sources = Sources(start, policy)
        self._log: list[Output] = []
        self._left_at = 0

    @property
    def ref(self) -> Ref:
        return self.start.ref

    def on(self, event: RequestEvent) -> list[RequestCommand]:  # noqa: C901, PLR0911, PLR0912 - the table, a row each
        """Take one event and return what has to be done about it, in order."""
        if self.state is RequestState.CLOSED:
            return []
        match event:
            case NewTokens():  # first, since it comes with every token
                return self._generated(event)
            case Begin():
                return self._begin(event)
            case RoomReserved(local_tokens) if self.state is RequestState.RESERVING:
                return self._reserved(local_tokens)
            case RoomRefused() if self.state is RequestState.RESERVING:
                return self._to(RequestState.WAITING_ROOM)
            case PagesFreed() if self.state is RequestState.WAITING_ROOM:
                return [*self._to(RequestState.RESERVING), SubmitWork(DecodeAwaiting())]
            case PageLoaded() | LoadEnded() if (self.state, event.transfer) == (RequestState.LANDING, self.transfer):
                return self._on_loading(event)
            case FrameVerified() | LandingComplete() | LandingLost() | PeerDone():
                return self._on_landing(event)
            case InBatch(cached_tokens, landed_tokens) if not self._log:
                self._sources.batched(cached_tokens, landed_tokens)
                return []
            case GatewayLost():
                return self._gateway_lost()
            case Attached(have):
                return self._attached(have)
            case Acknowledged() if self.state is RequestState.FINISHED:
                return self._close(None)
            case GraceOver() if self.detached or self.state is RequestState.FINISHED:
                return self._close(None)
            case SequenceLost(error):
                return self._close(error)
            case CancelAsked():
                return self._close(Cancelled("the request was cancelled"))
            case DeadlinePassed() if self.state is not RequestState.FINISHED:
                return self._close(DeadlineExceeded("the deadline passed on the decode worker", field="deadline_ms"))
            case Superseded():
                return self._close(StaleAttempt(f"a newer attempt than {self.ref.attempt} began"))
            case _:
                return []

    def _begin(self, event: Begin) -> list[RequestCommand]:
        sources = self._sources
        beyond = event.stored_tokens > event.cached_tokens and not self.start.scored
        sources.stored_tokens = event.stored_tokens if beyond else 0  # what only the pool has may be evicted any time
        remote = sources.elsewhere(event.cached_tokens, self._policy.remote_min_tokens)
        if remote or sources.stored_tokens > event.cached_tokens:
            return [*self._to(RequestState.RESERVING), SubmitWork(DecodeAwaiting())]
        return [*self._to(RequestState.RUNNING), SubmitWork(DecodeLocal())]

    def _reserved(self, local_tokens: int) -> list[RequestCommand]:
        self._sources.local_tokens = local_tokens
        self._to(RequestState.LANDING)
        if self._sources.stored_tokens <= local_tokens:
            return self._go_on(1)
        self.transfer += 1
        return [LoadPages(self.transfer, local_tokens)]

    def _go_on(self, least: int) -> list[RequestCommand]:
        """Ask a prefill worker when `least` tokens or more are still missing, else compute them here."""
        if self._sources.elsewhere(self._sources.have, least):
            return [self._open()]
        return [*self._to(RequestState.RUNNING), RunSequence()]

    def _open(self) -> RequestCommand:
        self.transfer += 1
        sources = self._sources
        return OpenLanding(self.transfer, sources.ask(), sources.local_tokens, frozenset(sources.verified))

    def _on_loading(self, event: PageLoaded | LoadEnded) -> list[RequestCommand]:
        if isinstance(event, LoadEnded):
            return self._go_on(self._policy.remote_min_tokens)
        self._sources.loaded(event.frame, event.tier)
        return [LandFrame(event.frame)]

    def _on_landing(self, event: FrameVerified | LandingComplete | LandingLost | PeerDone) -> list[RequestCommand]:
        if event.transfer != self.transfer:
            return []
        if isinstance(event, PeerDone):
            self._sources.told(event.done)
        if isinstance(event, PeerDone) or self.state is not RequestState.LANDING:
            return []
        if isinstance(event, FrameVerified):
            self._sources.landed(event.frame)
            return [LandFrame(event.frame)]
        lost: list[RequestCommand] = [FenceLanding(self.transfer)] if isinstance(event, LandingLost) else []
        if lost and self._sources.left:
            return [*lost, self._open()]
        return [*lost, *self._to(RequestState.RUNNING), RunSequence()]

    def _generated(self, event: NewTokens) -> list[RequestCommand]:
        if self.state is not RequestState.RUNNING and not (self.state is RequestState.RESERVING and event.finish):
            return []
        # A prefill worker's report may come after the first tokens.
        known, told = self._sources.handoff, self._log[0].handoff if self._log else None
        handoff = known if told is None or (event.finish and told != known) else None
        output = Output(self.ref, event.index, event.tokens, event.text, event.finish, handoff, event.scores)
        self._log.append(output)
        commands: list[RequestCommand] = [] if self.detached else [Emit(output)]
        if event.finish is not None:
            return [*self._to(RequestState.FINISHED), *commands, ArmGrace()]
        unsent = event.index + len(event.tokens) - self._left_at
        return self._close(None) if self.detached and unsent > self._policy.detached_tokens else commands

    def _gateway_lost(self) -> list[RequestCommand]:
        if self.state not in (RequestState.RUNNING, RequestState.FINISHED):
            return self._close(None)
        if self.detached:
            return []
        self.detached = True
        self._left_at = self._log[-1].index + len(self._log[-1].tokens) if self._log else len(self.start.forced)
        return [ArmGrace()]

    def _attached(self, have: int) -> list[RequestCommand]:
        """Send again what the gateway lacks. One entry of the log may be half known to it: it drops what it has."""
        self.detached = False
        lost = [output for output in self._log if output.index + len(output.tokens) > have or output.finish]
        commands: list[RequestCommand] = [Emit(output) for output in lost]
        return [*commands, ArmGrace()] if self.state is RequestState.FINISHED else commands

    def _close(self, error: BatonError | None) -> list[RequestCommand]:
        """End here and free everything; `error` is told to the gateway, where there is one that listens."""
        was = self.state
        self._to(RequestState.CLOSED)
        commands: list[RequestCommand] = []
        if was is RequestState.LANDING:
            commands.append(FenceLanding(self.transfer))
        if was is not RequestState.FINISHED:
            commands.append(CancelSequence())
        if error is not None and not self.detached:
            commands.append(Emit(AttemptFailed(self.ref, error)))
        return [*commands, Forget()]

    def _to(self, state: RequestState) -> list[RequestCommand]:
        if state not in _NEXT[self.state]:
            raise IllegalTransition("request", self.state, state, self.ref)
        self.state = state
        return []
