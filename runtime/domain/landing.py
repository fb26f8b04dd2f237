"""One transfer of KV pages at its receiving end: what may still land, and when nothing of it can any more.

    RESERVED -> LANDING -> COMMITTED -> VERIFIED
        \\__________\\___________\\____-> ABORTING -> FENCED

Frames are checked by the transport while they are copied out of staging; here they are matched with the ticket.
Epochs fence messages, not memory: in ABORTING a one-sided write may still arrive, so staging is quarantined until the
transport's fence says that none can. What landed and verified before an abort stays valid.
"""

import enum
from dataclasses import dataclass

from runtime.domain.messages import TicketPage
from runtime.domain.steps import Frame
from runtime.errors import IllegalTransition
from runtime.ids import TransferId


class LandingState(enum.Enum):
    RESERVED = "reserved"
    LANDING = "landing"
    COMMITTED = "committed"
    VERIFIED = "verified"
    ABORTING = "aborting"
    FENCED = "fenced"


_NEXT = {
    LandingState.RESERVED: {LandingState.LANDING, LandingState.COMMITTED, LandingState.ABORTING},
    LandingState.LANDING: {LandingState.COMMITTED, LandingState.ABORTING},
    LandingState.COMMITTED: {LandingState.VERIFIED, LandingState.ABORTING},
    LandingState.ABORTING: {LandingState.FENCED},
    LandingState.VERIFIED: set(),
    LandingState.FENCED: set(),
}


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A frame whose header and checksum are good. `path` is the kind of path it came by, such as `grpc`."""

    transfer: TransferId
    epoch: int
    frame: Frame
    path: str


@dataclass(frozen=True, slots=True)
class FrameCorrupt:
    """A frame that failed its checks; `index` is the page's place in the sequence where that is known."""

    transfer: TransferId
    epoch: int
    index: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class CommitArrived:
    """The sender says that it sent `frames` frames and sends no more."""

    transfer: TransferId
    epoch: int
    frames: int


@dataclass(frozen=True, slots=True)
class SenderAborted:
    """The sender gave up, or its path broke."""

    transfer: TransferId
    epoch: int
    reason: str


LandingEvent = FrameArrived | FrameCorrupt | CommitArrived | SenderAborted


@dataclass(frozen=True, slots=True)
class Deliver:
    """A verified frame for a page of the ticket, the first for this page."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Complete:
    """All pages of the ticket are verified."""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """No more will come, and not all of the ticket is here; the transfer has to be fenced."""

    reason: str


LandingCommand = Deliver | Complete | Incomplete


class Landing:
    def __init__(self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...]) -> None:
        self.transfer = transfer
        self.epoch = epoch
        self.state = LandingState.RESERVED
        self._wanted = {page.index: page for page in pages}
        self._verified: set[int] = set()

    @property
    def open(self) -> bool:
        return self.state in (LandingState.RESERVED, LandingState.LANDING)

    @property
    def missing(self) -> tuple[TicketPage, ...]:
        return tuple(page for index, page in self._wanted.items() if index not in self._verified)

    def on(self, event: LandingEvent) -> list[LandingCommand]:
        """Take an event of this transfer; one of another epoch, or after the end, changes nothing."""
        if (event.transfer, event.epoch) != (self.transfer, self.epoch) or not self.open:
            return []
        match event:
            case FrameArrived(frame=frame):
                return self._arrived(frame)
            case FrameCorrupt():
                # The page stays missing; the commit will find the gap. Later pages may still be good.
                return []
            case CommitArrived():
                self._to(LandingState.COMMITTED)
                if self.missing:
                    return self._give_up(f"committed with {len(self.missing)} pages missing or corrupt")
                self._to(LandingState.VERIFIED)
                return [Complete()]
            case SenderAborted(reason=reason):
                return self._give_up(reason)

    def abort(self) -> None:
        """Stop accepting; legal at any time before the end, and once more after it."""
        if self.open:
            self._to(LandingState.ABORTING)

    def fenced(self) -> None:
        """The transport confirmed that no write can arrive any more."""
        self._to(LandingState.FENCED)

    def _arrived(self, frame: Frame) -> list[LandingCommand]:
        page = self._wanted.get(frame.index)
        if page is None or (page.id, page.valid_tokens) != (frame.page, frame.valid_tokens):
            return []
        if self.state is LandingState.RESERVED:
            self._to(LandingState.LANDING)
        if frame.index in self._verified:
            return []
        self._verified.add(frame.index)
        return [Deliver(frame)]

    def _give_up(self, reason: str) -> list[LandingCommand]:
        self._to(LandingState.ABORTING)
        return [Incomplete(reason)]

    def _to(self, state: LandingState) -> None:
        if state not in _NEXT[self.state]:
            raise IllegalTransition("landing", self.state, state, self.transfer)
        self.state = state
