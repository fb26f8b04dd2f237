"""The seam between sessions and where they are kept: what a store of them does, whichever it is."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from runtime.domain.erasure import Erasure, WorkerReceipt
from runtime.domain.notices import Change, Notice
from runtime.domain.retention import KeptFor
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
from runtime.domain.spending import Amounts
from runtime.domain.tools import Pending, ToolResult
from runtime.ids import GatewayId, SessionId, TenantId, TurnId


class Bell(Protocol):
    async def wait(self, seconds: float) -> None:
        """Return when it rings, or has rung since it was waited for, at the latest after so many seconds."""


class SessionStore(Protocol):
    """Keeps sessions. Every method is one transaction, durable when it returns.

    All raise `Unavailable` when the store does not answer; what was asked may then have happened, and asking the same
    again is safe. A session of another tenant is `NotFound`, in the same words as one that is not there.
    """

    async def create(self, session: Session, key: Key | None, said: TurnRecord | None = None) -> Session:
        """With its main branch, and `said` in it as by `add`. The same key gives the session that it made; raises
        `FailedPrecondition` when that was of another request."""

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

        Raises `FailedPrecondition` naming `expected_head`, `on_conflict` or `idempotency_key`, `ResourceExhausted` when
        too many wait, and as `begin`."""

    async def open_alone(self, session: Session, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool]:
        """Make a session and open its first turn, or neither. The same key gives the turn that it opened, or, where
        that failed and is to be tried anew, opens another in the session that it made. Raises as `create` and
        `open`."""

    async def waiting(self, session: SessionId, branch: str) -> TurnRecord | None:
        """The queued turn that is next on a branch, if nothing runs there."""

    async def begin(self, turn: TurnRecord) -> TurnRecord | None:
        """Run a queued turn, with what it has `prepared`; None when it is not its time, or the branch has moved on.

        Raises `BudgetSpent` naming the limit that leaves no room for it, and `ResourceExhausted` when it is others that
        run who hold what it needs."""

    async def append(self, turn: TurnRecord, event: TurnEvent) -> None:
        """Raises `StaleAttempt` when another owner has the turn, or it has ended. Appending the same event again
        changes nothing."""

    async def extend(self, turn: TurnRecord, want: Amounts, took: Amounts) -> Amounts:
        """What a running turn holds of its session's budget from now on, when it wants `want` in all and took `took` of
        its time and KV so far. Raises as `append`."""

    async def finish(
        self, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
    ) -> None:
        """End a running turn, all in one transaction: `tokens` are its whole output, `events` all that it gave out.
        Raises as `append`, but finishing again as before changes nothing."""

    async def book(self, kept: KeptFor) -> None:
        """What a turn's grant came to, now that it is over; of each turn it counts once, and no more than what the turn
        left in reserve for it."""

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
        """No response any more; its session stays. Of a hidden one goes what no other response stands on, and all of it
        with the last. A turn that is unfinished then is fenced."""

    async def delete(self, tenant: TenantId, session: SessionId) -> None:
        """Forget a session and all of it. Its unfinished turns are fenced."""

    async def update(self, tenant: TenantId, session: SessionId, change: Change, key: Key | None) -> None:
        """Raises `FailedPrecondition` naming `expected_version` or `idempotency_key`."""

    async def notices(self, tenant: TenantId, session: SessionId, after: int, limit: int) -> tuple[Notice, ...]:
        """What happened to a session, in order, up to `limit` of those above `after`. Raises `FailedPrecondition`
        naming `after` when some of these are not kept any more."""

    async def sweep(self, limit: int) -> tuple[SessionId, ...]:
        """Delete up to `limit` sessions that have expired; never one of which a turn runs or waits. Give back what
        grants hold in reserve of whose end no worker told. Each of them is a transaction."""

    def hearing(self, session: SessionId) -> AbstractContextManager[Bell]:
        """Rings when something happened to a session; perhaps too often, and perhaps not at all."""

    async def tend(self) -> None:
        """Carry rings between gateways until cancelled; returns at once where there is only one."""

    async def erase(self, tenant: TenantId, session: SessionId) -> Erasure:
        """Forget a session as `delete` does, and leave a tombstone. Doing it again gives what was done then."""

    async def erasure(self, tenant: TenantId, session: SessionId) -> Erasure:
        """Raises `NotFound` unless that session was erased."""

    async def erasures(self, after: Erasure | None, limit: int) -> tuple[Erasure, ...]:
        """Those that workers may still have to be told of, the oldest first: up to `limit` of those that follow
        `after`."""

    async def scrub(self) -> None:
        """Leave nothing of what was deleted in the store's files; raises `Unavailable` while somebody reads them."""

    async def told(self, session: SessionId, worker: WorkerReceipt) -> None:
        """Keep that a worker is to be told of an erasure, or its first answer."""

    async def settle(self, session: SessionId, after_s: float) -> None:
        """Let an erasure be of `erasures` no more, if it is that old."""

    async def read_out(self, tenant: TenantId, session: SessionId) -> bytes:
        """All that is committed of a session as one file, with its limits and what was spent of them; raises `TooLarge`
        naming `session`."""

    async def take_in(self, tenant: TenantId, data: bytes, key: Key | None) -> Session:
        """A session out of such a file, whole or not at all. Raises `InvalidArgument` or `TooLarge` naming `bundle`,
        and `FailedPrecondition` when it is here already, or was erased."""

    async def close(self) -> None: ...
