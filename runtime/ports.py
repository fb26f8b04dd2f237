"""Every seam of the roles on one page: what they need of engines, transports, peers and text, and nothing more.

A variant is another object behind one of these; nobody asks which one it is.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from runtime.domain.call_forms import CallForm
from runtime.domain.erasure import Erasure, WorkerReceipt
from runtime.domain.holdings import Changes
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
from runtime.domain.sessions import (
    Branch,
    Context,
    Ending,
    Halt,
    Item,
    Key,
    Progress,
    Said,
    Session,
    TurnEvent,
    TurnRecord,
)
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import EngineCommand, Forgotten, Frame, Load, StepOutput
from runtime.domain.tiers import Tier, TierReport
from runtime.domain.tools import Pending, ToolResult
from runtime.ids import BootId, GatewayId, PageId, SessionId, TenantId, TransferId, TurnId, WorkerId

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
    of this ever fails or waits."""

    def match(self, chain: Sequence[PageId], start: int) -> int:
        """Up to where pages of `chain` are likely to be had, from the place `start` on; `start` when it is not worth
        the way. Advisory."""

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> Loading:
        """Begin to read the pages of `chain` from the place `start` on; `salt` keys their ids."""

    def on_step(self, step: StepOutput) -> None:
        """Learn what filled in the engine, and take what it was asked to copy."""

    def reports(self) -> tuple[TierReport, ...]: ...


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


class SessionStore(Protocol):
    """Keeps sessions. Every method is one transaction, durable when it returns.

    All raise `Unavailable` when the store does not answer; what was asked may then have happened, and asking the same
    again is safe. A session of another tenant is `NotFound`, in the same words as one that is not there.
    """

    async def create(self, session: Session, key: Key | None) -> Session:
        """With its main branch. The same key gives the session that it made; raises `FailedPrecondition` when that
        was of another request."""

    async def get(self, tenant: TenantId, session: SessionId) -> tuple[Session, tuple[Branch, ...]]: ...

    async def list(self, tenant: TenantId, after: SessionId | None, limit: int) -> tuple[Session, ...]:
        """The newest first, those after `after`."""

    async def context(
        self, tenant: TenantId, session: SessionId, branch: str, instructions: str | None = None
    ) -> Context:
        """For a turn with these instructions. Raises `DataCorrupt` when the committed tokens are not what was committed
        (invariant 5)."""

    async def known(self, tenant: TenantId, session: SessionId, key: Key) -> TurnRecord | None:
        """The turn that was opened under this key; raises `FailedPrecondition` when by another request."""

    async def open(self, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool] | None:
        """Open a turn: running, or queued when its branch is busy and its policy allows. Gives it as it is now, and
        whether it is new; None when the branch has moved on from `prepared.base`, so prepare it anew.

        Raises `FailedPrecondition` naming `expected_head`, `on_conflict` or `idempotency_key`, and `ResourceExhausted`
        when too many wait."""

    async def waiting(self, session: SessionId, branch: str) -> TurnRecord | None:
        """The queued turn that is next on a branch, if nothing runs there."""

    async def begin(self, turn: TurnRecord) -> TurnRecord | None:
        """Run a queued turn, with what it has `prepared`; None when it is not its time, or the branch has moved on."""

    async def append(self, turn: TurnRecord, event: TurnEvent) -> None:
        """Raises `StaleAttempt` when another owner has the turn, or it has ended. Appending the same event again
        changes nothing."""

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        """End a running turn, all in one transaction: `tokens` are its whole output, `events` all that it gave out.
        Raises as `append`, but finishing again as before changes nothing."""

    async def drop(self, turn: TurnRecord, ending: Ending) -> bool:
        """End a queued turn; False when it is not queued any more."""

    async def halt(self, tenant: TenantId, session: SessionId, turn: TurnId, halt: Halt) -> TurnRecord:
        """Ask the owner of a turn to stop it; gives the turn, which may have ended before."""

    async def progress(self, tenant: TenantId, session: SessionId, turn: TurnId, after: int) -> Progress: ...

    async def beat(self, owner: GatewayId, lease_s: float) -> Mapping[TurnId, Halt]:
        """Say that this owner lives; gives those of its turns that somebody asked to halt."""

    async def adopt(self, owner: GatewayId, mine: frozenset[TurnId], limit: int) -> tuple[TurnRecord, ...]:
        """Take over up to `limit` unfinished turns whose owner's lease is over, or that are this owner's without being
        among `mine`. Their epoch grows."""

    async def fork(
        self, tenant: TenantId, session: SessionId, branch: str, at: TurnId | None, name: str, key: Key | None
    ) -> Branch:
        """A new branch `name` after the turn `at` of `branch`, by default its head."""

    async def rollback(
        self, tenant: TenantId, session: SessionId, branch: str, to: TurnId | None, key: Key | None
    ) -> Branch:
        """Move the head back to the turn `to`, or to the beginning. What came after it stays readable by its id."""

    async def drop_branch(self, tenant: TenantId, session: SessionId, branch: str) -> None:
        """Forget a branch, and what was said on it and on no other. Raises `FailedPrecondition` naming `branch` for
        `main`, and while a turn of it has not ended."""

    async def submit(
        self, tenant: TenantId, session: SessionId, branch: str, results: Sequence[ToolResult], key: Key | None
    ) -> tuple[TurnId, tuple[Pending, ...]]:
        """Resolve calls of a branch's head, all of `results` or nothing; gives the head, and all of its calls as they
        are then. Raises `FailedPrecondition` naming the result that comes too late or a second time, and `NotFound`."""

    async def calls(self, tenant: TenantId, session: SessionId, branch: str) -> tuple[Pending, ...]:
        """Those of a branch's head, in the order in which they were made."""

    async def items(
        self, tenant: TenantId, session: SessionId, branch: str, after: int, limit: int
    ) -> tuple[tuple[int, TurnId, Item], ...]:
        """What was said on a branch, oldest first: those whose number is above `after`."""

    async def turn(self, tenant: TenantId, turn: TurnId) -> TurnRecord:
        """By its id alone; `NotFound` also where it is no response: it was forgotten, or has only items."""

    async def add(self, turn: TurnRecord, key: Key | None) -> TurnRecord:
        """Commit a turn that has items and no answer; the next one renders them. Raises as `open` where the branch is
        busy."""

    async def page(
        self,
        tenant: TenantId,
        session: SessionId,
        branch: str,
        after: tuple[TurnId, int] | None,
        limit: int,
        *,
        newest_first: bool,
    ) -> tuple[Said, ...]:
        """What was said on a branch beyond the item `after`; raises `NotFound` naming `item` when it has none such."""

    async def item(self, tenant: TenantId, session: SessionId, branch: str, turn: TurnId, number: int) -> Said: ...

    async def describe(self, tenant: TenantId, session: SessionId, metadata: Mapping[str, str]) -> Session:
        """Replace a session's metadata."""

    async def forget(self, tenant: TenantId, turn: TurnId) -> None:
        """No response any more; its session stays, but for a hidden one that has no other. A turn that is unfinished
        then is fenced."""

    async def delete(self, tenant: TenantId, session: SessionId) -> None:
        """Forget a session and all of it. Its unfinished turns are fenced."""

    async def erase(self, tenant: TenantId, session: SessionId) -> Erasure:
        """Forget a session as `delete` does, and leave a tombstone. Doing it again gives what was done then."""

    async def erasure(self, tenant: TenantId, session: SessionId) -> Erasure:
        """Raises `NotFound` unless that session was erased."""

    async def erasures(self) -> tuple[Erasure, ...]:
        """Those that workers may still have to be told of."""

    async def scrub(self) -> None:
        """Leave nothing of what was deleted in the store's files; raises `Unavailable` while somebody reads them."""

    async def told(self, session: SessionId, worker: WorkerReceipt) -> None:
        """Keep that a worker is to be told of an erasure, or its first answer."""

    async def settle(self, session: SessionId, after_s: float) -> None:
        """Let an erasure be of `erasures` no more, if it is that old."""

    async def read_out(self, tenant: TenantId, session: SessionId) -> bytes:
        """All that is committed of a session as one file; raises `TooLarge` naming `session`."""

    async def take_in(self, tenant: TenantId, data: bytes, key: Key | None) -> Session:
        """A session out of such a file, whole or not at all. Raises `InvalidArgument` or `TooLarge` naming `bundle`,
        and `FailedPrecondition` when it is here already, or was erased."""

    async def close(self) -> None: ...
