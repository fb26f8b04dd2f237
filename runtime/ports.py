"""Every seam of the roles on one page: what they need of engines, transports, peers and text, and nothing more.

A variant is another object behind one of these; nobody asks which one it is.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from runtime.domain.landing import LandingEvent
from runtime.domain.messages import (
    GatewayCommand,
    Offer,
    PrefillCall,
    PrefillDone,
    StepBatch,
    Ticket,
    TicketPage,
    View,
    Worker,
)
from runtime.domain.sequence import Ref
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import EngineCommand, Frame, Load, StepOutput
from runtime.ids import BootId, PageId, TransferId, WorkerId

Observe = Callable[[Ref, object, Sequence[object]], None]
"""Told of every event that a state table took and the commands it gave: for traces, and for checkers."""


def unobserved(ref: Ref, event: object, commands: Sequence[object]) -> None:
    """The observer of those who need none."""


class Engine(Protocol):
    """One accelerator running one model. Commands never block; what they lead to comes out of `steps`."""

    spec: ModelSpec

    def match(self, chain: Sequence[PageId]) -> int:
        """Leading pages of `chain` resident in the prefix cache; advisory, no effect."""

    def tell(self, command: EngineCommand) -> None:
        """Hand over a command. One for a sequence that is gone is ignored."""

    def load(self) -> Load: ...

    def steps(self) -> AsyncIterator[StepOutput]:
        """One output per engine step, in order; raises `EngineFailed` when the engine itself died."""

    def check(self) -> None:
        """Raise `InvariantViolation` unless pages and sequences add up. Only while idle."""


class TextDecoder(Protocol):
    """Token ids of one sequence to text, incrementally."""

    def push(self, token: int) -> str:
        """The text that `token` completes; never half of a UTF-8 character."""

    def flush(self) -> str:
        """What is still held back, at the end."""


class Tokenizer(Protocol):
    """Text to token ids and back, as the served model wants it."""

    eos_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants around a prompt."""

    def encode_within(self, text: str) -> list[int]:
        """Token ids of a text inside an answer: without special tokens around it."""

    def render_chat(self, messages: Sequence[dict[str, object]]) -> list[int]:
        """Token ids of a conversation through the chat template, ending where the assistant begins.

        Raises `InvalidArgument` naming `messages` when there is no template or it refuses them.
        """

    def decoder(self) -> TextDecoder: ...


class Sender(Protocol):
    """The sending end of one transfer. Every method raises `Unavailable` when the path broke, and
    `StaleAttempt` when the receiver no longer wants it."""

    async def send(self, frame: Frame) -> None:
        """Hand a frame over; returns once the window has room, not once it arrived."""

    async def commit(self) -> None:
        """Say that no more frames come; returns when the receiver has all of them."""

    async def abort(self) -> None:
        """Post nothing more, wait until nothing is in flight, then tell the receiver so."""


class Transport(Protocol):
    """Paths between two workers: both ends of them, on this worker. `name` is of that which everybody can take."""

    name: str

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Faster ways to here than `name`, best first, for those who can take them."""

    def open(self, ticket: Ticket) -> AbstractAsyncContextManager[Sender]:
        """Start pushing under a ticket; leaving the context without a commit aborts."""

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        """Accept frames of a transfer from now on and tell `sink`; returns the endpoint to write into the ticket."""

    async def fence(self, transfer: TransferId) -> None:
        """Accept nothing more of it; returns when no write of it can arrive in memory any more."""


class PrefillPeer(Protocol):
    """A prefill worker, as a decode worker sees it."""

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        """Compute and push; raises `Unavailable`, `ResourceExhausted` and their like. Cancelling it cancels there."""


class DecodeStream(Protocol):
    """One gateway's stream with one decode worker; broken streams raise `Unavailable` from either method."""

    async def send(self, *commands: GatewayCommand) -> None:
        """Hand commands over, to arrive in this order."""

    def batches(self) -> AsyncIterator[StepBatch]: ...


class DecodePeer(Protocol):
    """A decode worker, as a gateway sees it."""

    def attach(self) -> AbstractAsyncContextManager[DecodeStream]: ...


class Peers(Protocol):
    """Finds the other processes by address. Channels are kept and shared."""

    def prefill(self, address: str) -> PrefillPeer: ...

    def decode(self, address: str) -> DecodePeer: ...


class Directory(Protocol):
    """Where workers register and everybody else learns of them."""

    async def register(self, worker: Worker) -> None:
        """Register, or renew with a new load; raises `Incompatible` when the mesh serves something else."""

    async def leave(self, worker: WorkerId, boot: BootId) -> None: ...

    def views(self) -> AsyncIterator[View]:
        """The current view, then every newer one."""
