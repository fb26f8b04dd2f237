"""Every seam of the roles on one page: what they need of engines, transports, peers and text, and nothing more. That to
the store of sessions is the next page, `runtime/session_store.py`.

A variant is another object behind one of these; nobody asks which one it is.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from runtime.domain.call_forms import CallForm
from runtime.domain.holdings import Changes
from runtime.domain.landing import LandingEvent
from runtime.domain.messages import (
    GatewayCommand,
    Holder,
    Offer,
    PrefillCall,
    PrefillDone,
    Start,
    StepBatch,
    Ticket,
    TicketPage,
    View,
    Worker,
)
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.domain.sequence import Ref
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import EngineCommand, Forgotten, Frame, Load, StepOutput
from runtime.domain.tiers import Tier, TierReport
from runtime.ids import BootId, PageId, SessionId, TransferId, WorkerId

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

    @property
    def vocabulary(self) -> str:
        """Names what token ids mean: the same for tokenizers that agree on it."""

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants around a prompt."""

    def encode_within(self, text: str) -> list[int]:
        """Token ids of a text inside an answer: without special tokens around it."""

    def render_chat(self, messages: Sequence[dict[str, object]], tools: Sequence[dict[str, object]] = ()) -> list[int]:
        """Token ids of a conversation for which there are `tools`, through the chat template, ending where the
        assistant begins.

        Raises `InvalidArgument` naming `messages` when there is no template or it refuses them.
        """

    def no_deltas(self) -> str | None:
        """Why the chat template cannot render what is new in a conversation alone; None when it can."""

    def render_delta(
        self,
        preamble: Sequence[dict[str, object]],
        messages: Sequence[dict[str, object]],
        tools: Sequence[dict[str, object]] = (),
    ) -> list[int]:
        """Token ids of what follows an assistant's answer when `messages` come next: the answer's end, the messages,
        and where the assistant begins again. `preamble` are the system messages that the conversation began with.

        Raises `InvalidArgument` naming `messages` when the template refuses them.
        """

    def no_tools(self) -> str | None:
        """Why the model is given no tools; None when it is, and then there is a `call_form`."""

    def no_results(self) -> str | None:
        """Why what tools brought cannot be rendered alone; None when it can."""

    @property
    def call_form(self) -> CallForm | None:
        """The form in which the model calls tools."""

    def special(self, text: str) -> int | None:
        """The token that is spelled so and has no text of its own; None when there is none."""

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


class Loading(Protocol):
    """Pages on their way out of the tiers, read ahead of whoever takes them."""

    def pages(self) -> AsyncIterator[tuple[Frame, Tier]]:
        """Verified pages in the order of the chain, without a gap; ends with the first that is not to be had in time.
        Never raises for what befalls a tier. Taken once."""

    def close(self) -> None:
        """Read no more; again and at any time."""


class Tiers(Protocol):
    """What is behind the pool of one worker: pages in host memory, or in a store. Any may be gone at any time, and none
    of this but `forget` ever fails or waits."""

    def match(self, chain: Sequence[PageId], start: int) -> int:
        """Up to where pages of `chain` are likely to be had, from the place `start` on; `start` when it is not worth
        the way. Advisory."""

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> Loading:
        """Begin to read the pages of `chain` from the place `start` on; `salt` keys their ids."""

    def on_step(self, step: StepOutput) -> None:
        """Learn what filled in the engine, and take what it was asked to copy."""

    async def forget(self, session: SessionId) -> tuple[int, int]:
        """Drop what only this session has used, which uses nothing any more; gives how many copies of pages, and how
        many of its others stay for those who have used them as well. Raises `Unavailable` while that cannot be done;
        then it is asked again, and gives what all of its tries did."""

    def reports(self) -> tuple[TierReport, ...]: ...


class PrefillPeer(Protocol):
    """A prefill worker, as a decode worker sees it."""

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        """Compute and push; raises `Unavailable`, `ResourceExhausted` and their like. Cancelling it cancels there."""


class MirrorPeer(Protocol):
    """A worker that holds pages for others, as they see it."""

    async def keep(self, call: KeepCall) -> Kept:
        """Let it hold pages; raises `Unavailable`, `ResourceExhausted` and their like."""

    async def fetch(self, call: FetchCall) -> Fetched:
        """Let it push pages; raises `NotFound` when it has none of them, and `Unavailable` and its like."""


class MirrorPeers(Protocol):
    def holder(self, holder: Holder) -> MirrorPeer: ...


class Mirror(Protocol):
    """Copies of a decode worker's pages on other workers. None of this ever fails or waits, but for `fetch`."""

    def grew(self, start: Start, tokens: Sequence[int]) -> None:
        """A sequence has these tokens more, beside its prompt and what was forced; all before them have KV."""

    def ended(self, ref: Ref) -> None:
        """Nothing comes any more; what is full is still to be copied."""

    def forget(self, session: SessionId) -> None:
        """Copy nothing of it any more."""

    async def fetch(self, holder: Holder, call: FetchCall) -> Fetched:
        """Let a holder push what it has of a ticket; raises as `MirrorPeer.fetch`."""


class DecodeStream(Protocol):
    """One gateway's stream with one decode worker; broken streams raise `Unavailable` from either method."""

    async def send(self, *commands: GatewayCommand) -> None:
        """Hand commands over, to arrive in this order."""

    def batches(self) -> AsyncIterator[StepBatch]: ...


class DecodePeer(Protocol):
    """A decode worker, as a gateway sees it."""

    def attach(self) -> AbstractAsyncContextManager[DecodeStream]: ...


class PageKeeper(Protocol):
    """A worker, as whoever erases a session sees it."""

    async def forget(self, session: SessionId) -> Forgotten:
        """Let it drop all that it has of a session; raises `Unavailable` and its like."""


class PageKeepers(Protocol):
    def keeper(self, worker: Worker) -> PageKeeper: ...


class Peers(Protocol):
    """Finds the other processes by address. Channels are kept and shared."""

    def prefill(self, address: str) -> PrefillPeer: ...

    def decode(self, address: str) -> DecodePeer: ...


class PageSources(Protocol):
    """Tells what workers hold."""

    def pages(self, address: str, role: str, after: int) -> AsyncGenerator[Changes, None]:
        """What changed there after number `after`, and then every change; raises `Unavailable` when it ends."""


class Directory(Protocol):
    """Where workers register and everybody else learns of them."""

    async def register(self, worker: Worker) -> float | None:
        """Register, or renew with a new load; raises `Incompatible` when the mesh serves something else. Returns the
        seconds within which the worker is to leave, if it is."""

    async def leave(self, worker: WorkerId, boot: BootId) -> None: ...

    def views(self) -> AsyncIterator[View]:
        """The current view, then every newer one."""
