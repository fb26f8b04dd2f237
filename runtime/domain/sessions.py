"""What a session is made of: branches, turns, what they gave out and how they ended. Values; a store keeps them.

A session is a tree of committed turns. A *line* is a run of turns after one another; a fork or a rollback begins a new
line at a turn of an older one, so either costs a row or two whatever the history. A branch is a name for a place on a
line; its epoch grows with every owner of a turn on it, and fences what an older owner still wants to write.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from runtime.domain.messages import Handoff
from runtime.domain.retention import NO_RETENTION, Holding, Retained, Retention
from runtime.domain.reuse import Sources
from runtime.domain.sequence import Sampling
from runtime.domain.spending import NO_ACCOUNT, NO_RESERVE, NOTHING, Account, Amounts, Measure, Reserve
from runtime.domain.tools import MAX_CALL_ID, NAME, NO_TOOLS, Pending, Toolbox, ToolCall, arguments_of
from runtime.errors import BatonError, InvalidArgument, TooLarge
from runtime.ids import BootId, GatewayId, SessionId, TenantId, TurnId

MAIN = "main"
MAX_ITEMS = 1024
MAX_ITEM_BYTES = 1 << 20
MAX_ROLE = 64
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
MAX_QUEUED = 256
MAX_TTL_MS = 10 * 365 * 24 * 3600 * 1000


class TurnStatus(enum.StrEnum):
    """`queued` waits for the branch; of `queued` and `running` a turn is unfinished, the others are for ever."""

    QUEUED = "queued"
    RUNNING = "running"
    COMMITTED = "committed"
    CANCELLED = "cancelled"
    FAILED = "failed"


UNFINISHED = frozenset({TurnStatus.QUEUED, TurnStatus.RUNNING})


class StopReason(enum.StrEnum):
    """Why a committed turn ended. `interrupted`: somebody stopped it and kept what there was; `tool_calls`: it called
    tools, and the branch waits until they are resolved; `budget`: its session had nothing left to spend."""

    END_TURN = "end_turn"
    LENGTH = "length"
    INTERRUPTED = "interrupted"
    TOOL_CALLS = "tool_calls"
    BUDGET = "budget"


class OnConflict(enum.StrEnum):
    """What becomes of a turn whose branch is busy; `interrupt` and `rollback` stop the one that runs, keeping or
    discarding what it has, and go before all that wait."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class Halt(enum.StrEnum):
    """How a turn is to be stopped: its partial answer committed, or thrown away."""

    INTERRUPT = "interrupt"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Item:
    """One message of a conversation, as the chat template takes it: with the `calls` that it makes, or the `call` whose
    result it is, of the tool `name`."""

    role: str
    content: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    call: str = ""
    name: str = ""

    @property
    def message(self) -> dict[str, object]:
        message: dict[str, object] = {"role": self.role, "content": self.content}
        if self.calls:
            message["tool_calls"] = [call.for_template for call in self.calls]
        if self.call:
            message |= {"tool_call_id": self.call, "name": self.name}
        return message


@dataclass(frozen=True, slots=True)
class Policies:
    """What a turn does that does not say itself: as of `Asked`."""

    on_conflict: OnConflict = OnConflict.REJECT
    cancel_unwatched: bool = False
    retention: Retention = NO_RETENTION


DEFAULT_POLICIES = Policies()


@dataclass(frozen=True, slots=True)
class Session:
    """`created_ms` is the store's clock, milliseconds since 1970. `rerender`: every turn renders the whole conversation
    anew, for a model whose chat template has no rendering of what is new alone. `vocabulary` says what its token ids
    mean. `hidden`: it was made for a response of its own, is not listed, and goes with the last of its responses."""

    id: SessionId
    tenant: TenantId
    model: str
    created_ms: int
    rerender: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    vocabulary: str = ""
    policies: Policies = DEFAULT_POLICIES
    account: Account = NO_ACCOUNT
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """After `depth` committed turns, the last of them on `line` or before it."""

    line: int
    depth: int


@dataclass(frozen=True, slots=True)
class Branch:
    """`head` is the last committed turn, None at the beginning; `tokens` its context with that turn; `live` the turn
    that runs now; `holding` what is kept of its KV, as far as is known."""

    name: str
    place: Place
    head: TurnId | None
    tokens: int
    epoch: int
    live: TurnId | None
    holding: Holding | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants of a turn. `max_tokens_given`: the sampling's own bound is the client's; else the answer may
    fill the context. `deadline_s` counts anew for whoever takes the turn over. `cancel_unwatched`: when the last who
    watches it leaves, it is cancelled; where that, `on_conflict` or `retention` is None, the session's policies say it.
    `instructions` stand before all that was said, for this turn only. `memo` is what the face that took the turn wants
    to find again with it; nobody else reads it."""

    items: tuple[Item, ...]
    sampling: Sampling
    max_tokens_given: bool
    deadline_s: float
    expected_head: TurnId | None = None
    head_is_expected: bool = False
    on_conflict: OnConflict | None = None
    cancel_unwatched: bool | None = None
    toolbox: Toolbox = NO_TOOLS
    instructions: str | None = field(default=None, repr=False)
    memo: bytes = field(default=b"", repr=False)
    retention: Retention | None = None

    def settled(self, policies: Policies) -> "Asked":
        """With what the policies say for what it leaves open."""
        conflict = policies.on_conflict if self.on_conflict is None else self.on_conflict
        cancel = policies.cancel_unwatched if self.cancel_unwatched is None else self.cancel_unwatched
        retention = policies.retention if self.retention is None else self.retention
        return replace(self, on_conflict=conflict, cancel_unwatched=cancel, retention=retention)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn ready to run after `base`: `prompt` are the token ids that it adds to the `context` tokens before it.
    Where everything is rendered anew that is none, and `drift` how many committed tokens the new rendering did not
    repeat. `resolved`: so many calls of the head had their results; it is only ready as long as it is these. `asked` is
    what was asked with what is told of these calls and what was left to the turn before; None once it is stored."""

    base: Place
    prompt: tuple[int, ...] = field(repr=False)
    context: int = 0
    max_tokens: int = 0
    drift: int = 0
    resolved: int = 0
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """What was persisted together, and may be given out: `seq` counts a turn's events from 1, without gap and across
    its owners; `index` the output tokens before `tokens`; `text` is what they complete."""

    seq: int
    index: int
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of a turn: of its prompt, of these the leading ones that nobody had to compute, and of its answer."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a turn ended. `kept` of its output tokens stay in the context; those of a stop belong to the next delta. Of
    one that made `calls`, `said` is the text beside them. `took` is what its session has spent on it, `limit` what
    there was none left of, `sources` where its prompt's KV is from, `fingerprint` names that KV, `retained` is what is
    kept of it, where that was asked for."""

    status: TurnStatus
    stop: StopReason | None = None
    error: BatonError | None = None
    kept: int = 0
    spent: Spent = Spent()
    attempts: int = 0
    boot: BootId | None = None
    handoff: Handoff | None = None
    drift: int = 0
    took: Amounts = NOTHING
    limit: Measure | None = None
    sources: Sources | None = None
    fingerprint: str | None = None
    calls: tuple[ToolCall, ...] = ()
    said: str = field(default="", repr=False)
    retained: Retained | None = None


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn as the store has it. `prepared` is None while it is queued, `ending` until it has one. `halt`: somebody
    asked its owner to stop it. `reserve` is what it holds of its session's budget while it runs; of one that is to run,
    what it wants to hold."""

    id: TurnId
    session: SessionId
    tenant: TenantId
    branch: str
    model: str
    status: TurnStatus
    epoch: int
    owner: GatewayId
    asked: Asked
    prepared: Prepared | None = None
    halt: Halt | None = None
    ending: Ending | None = None
    reserve: Reserve = NO_RESERVE


@dataclass(frozen=True, slots=True)
class Progress:
    """`events` after the sequence number that was asked for, and the end, if it has ended."""

    turn: TurnRecord
    events: tuple[TurnEvent, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """What a branch has said so far. `preamble` are the system messages that it begins with, the `instructions` of its
    last answer before all others; `boot` the decode worker that ran that, with KV of `fingerprint`, `toolbox` what it
    was told of tools. `items` is all of it, only where the next turn renders anew; else `unrendered` are the items that
    were added after the last answer. `calls` are those of the head."""

    session: Session
    branch: Branch
    tokens: tuple[int, ...] = field(repr=False)
    preamble: tuple[Item, ...] = ()
    boot: BootId | None = None
    items: tuple[Item, ...] = field(default=(), repr=False)
    calls: tuple[Pending, ...] = ()
    toolbox: Toolbox = NO_TOOLS
    fingerprint: str | None = None
    instructions: str | None = field(default=None, repr=False)
    unrendered: tuple[Item, ...] = field(default=(), repr=False)

    def anew(self, instructions: str | None) -> bool:
        """Whether a turn with these instructions renders everything, because what is committed does not come before
        it."""
        return self.session.rerender or (bool(self.tokens) and instructions != self.instructions)


@dataclass(frozen=True, slots=True)
class Said:
    """An item of a branch, by the turn that it came with and its number there, from 0."""

    turn: TurnId
    number: int
    item: Item


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key with the digest of the request that came under it. `first`: this is known to be a first try,
    so what came under the key before was another one. `window_s`: what is older is none of it."""

    name: str
    digest: bytes
    first: bool = False
    window_s: float | None = None


def check_items(items: Sequence[Item]) -> None:
    """Raise `InvalidArgument` or `TooLarge` naming the field at fault. Whether there may be none, a branch decides."""
    if len(items) > MAX_ITEMS:
        raise InvalidArgument(f"items has {len(items)} entries, at most {MAX_ITEMS} are allowed", field="items")
    for number, item in enumerate(items):
        field_name = f"items[{number}]"
        if not 1 <= len(item.role) <= MAX_ROLE:
            raise InvalidArgument(f"{field_name}.role must have 1 to {MAX_ROLE} characters", field=f"{field_name}.role")
        check_text(item.content, f"{field_name}.content")
        if "\0" in item.role:
            raise InvalidArgument(f"{field_name}.role holds a NUL character", field=f"{field_name}.role")
        check_calls(item, field_name)


def check_calls(item: Item, field_name: str) -> None:
    """Raise `InvalidArgument` naming the field at fault in what an item says of calls."""
    if len(item.call) > MAX_CALL_ID or "\0" in item.call:
        where = f"{field_name}.tool_call_id"
        raise InvalidArgument(f"{where} must have at most {MAX_CALL_ID} characters and no NUL", field=where)
    for call in item.calls:
        where = f"{field_name}.tool_calls"
        if not 1 <= len(call.id) <= MAX_CALL_ID or "\0" in call.id or not NAME.fullmatch(call.name):
            raise InvalidArgument(f"{where} must have ids and names of 1 to 64 characters", field=where)
        if arguments_of(call.arguments) is None or len(call.arguments) > MAX_ITEM_BYTES:
            raise InvalidArgument(f"{where} must have the JSON of an object as arguments", field=where)


def check_text(text: str, field: str) -> None:
    """Raise `InvalidArgument` or `TooLarge` naming `field`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{field} is not valid Unicode", field=field) from error
    if size > MAX_ITEM_BYTES:
        raise TooLarge(f"{field} has {size} bytes, the limit is {MAX_ITEM_BYTES}", field=field)
    if "\0" in text:
        raise InvalidArgument(f"{field} holds a NUL character", field=field)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` naming `metadata`."""
    if len(metadata) > MAX_METADATA:
        raise InvalidArgument(
            f"metadata has {len(metadata)} keys, at most {MAX_METADATA} are allowed", field="metadata"
        )
    for key, value in metadata.items():
        if not 1 <= len(key) <= MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            rule = f"keys of 1 to {MAX_METADATA_KEY} and values of at most {MAX_METADATA_VALUE} characters"
            raise InvalidArgument(f"metadata takes {rule}", field="metadata")
        if "\0" in key + value:
            raise InvalidArgument("metadata holds a NUL character", field="metadata")
