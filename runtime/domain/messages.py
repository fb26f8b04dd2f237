"""The vocabulary between processes: what gateways, decode workers and prefill workers say to each other.

Protobuf never comes further in than `runtime/wire.py`. Durations are remaining milliseconds; clocks of two machines
are never compared. Every command to a decode worker and every output from it carries its `Ref`.
"""

from dataclasses import dataclass, field, replace

from runtime.domain.profile import UNMEASURED, Profile
from runtime.domain.records import quick
from runtime.domain.retention import NO_RETENTION, KeptFor, Pause, Promise, Retention
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.domain.spec import LayerGroup
from runtime.domain.steps import Encoding, Load
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import BatonError
from runtime.ids import BootId, GatewayId, PageId, SessionId, TenantId, TransferId, WorkerId


@dataclass(frozen=True, slots=True)
class PrefillCandidate:
    """A prefill worker that the decode worker may call, best first in the list it comes in."""

    worker: WorkerId
    boot: BootId
    address: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker of any role that holds pages, or may hold copies of them."""

    worker: WorkerId
    boot: BootId
    address: str
    role: str


@dataclass(frozen=True, slots=True)
class Start:
    """Begin an attempt. `forced` are the tokens that the turn already gave out; nothing of them is sampled again. An
    uncached suffix of `remote_min_tokens` or more is better prefilled elsewhere; None leaves that to the worker.
    `holders` likely have pages of it, the best first. Copies of its full pages are to be held by `copies` of `mirrors`,
    the best first. For how long its KV is to be kept after its end, `retention` asks."""

    ref: Ref
    tenant: TenantId
    prompt: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    forced: tuple[int, ...] = ()
    candidates: tuple[PrefillCandidate, ...] = ()
    remaining_ms: int = 0
    priority: int = 0
    session: SessionId | None = None
    remote_min_tokens: int | None = None
    holders: tuple[Holder, ...] = ()
    copies: int = 0
    mirrors: tuple[Holder, ...] = ()
    retention: Retention = NO_RETENTION

    @property
    def scored(self) -> bool:
        """Whether the prompt's log-probabilities are owed, for which prefill workers have no head."""
        return self.sampling.prompt_logprobs is not None and not self.forced


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Attach:
    """Go on sending on this stream, from output token index `have` on."""

    ref: Ref
    have: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The final output arrived: the worker may forget the attempt."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Paused:
    """The turn of an attempt that has ended is committed, and its session waits for something now. What is kept of it
    is kept for `keep_ms`, or no more with 0."""

    ref: Ref
    session: SessionId
    pause: Pause
    keep_ms: int = 0


GatewayCommand = Start | CancelAttempt | Attach | Acknowledge | Paused


@dataclass(frozen=True, slots=True)
class Handoff:
    """How an attempt's prompt got its KV, for the client's usage, the demo and the metrics.

    Tokens add up: `cached_tokens` (prefix cache of the decode worker) + `host_tokens` + `cold_tokens` (its tiers) +
    `restored_tokens` (from the pages of other workers, the last of them `holder`) + `moved_tokens` (from a prefill
    worker) + computed here = prompt + forced. `wait_ms` runs from the start of the attempt to its admission to the
    batch, `transfer_ms` from the first frame to the last, `load_ms` as long as pages came from the tiers, `restore_ms`
    from asking the first holder to the last restored page. `prefill_ms` and `exposed_ms` are the prefill worker's:
    until all was computed, and from there until all had arrived.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    moved_tokens: int = 0
    moved_pages: int = 0
    moved_bytes: int = 0
    prefill_worker: WorkerId | None = None
    prefill_cached_tokens: int = 0
    transport: str = ""
    wait_ms: float = 0.0
    transfer_ms: float = 0.0
    prefill_ms: float = 0.0
    exposed_ms: float = 0.0
    host_tokens: int = 0
    cold_tokens: int = 0
    load_ms: float = 0.0
    restored_tokens: int = 0
    holder: WorkerId | None = None
    restore_ms: float = 0.0

    @property
    def loaded_tokens(self) -> int:
        """Tokens whose KV the tiers had."""
        return self.host_tokens + self.cold_tokens

    def loaded(self, tier: Tier, tokens: int) -> "Handoff":
        """With one more page of a tier."""
        if tier is Tier.HOST:
            return replace(self, host_tokens=self.host_tokens + tokens)
        return replace(self, cold_tokens=self.cold_tokens + tokens)

    def told(self, done: "PrefillDone") -> "Handoff":
        """With what the prefill worker says."""
        return replace(
            self,
            prefill_cached_tokens=done.cached_tokens,
            prefill_ms=done.prefill_ms,
            exposed_ms=done.exposed_ms,
        )


@quick
@dataclass(frozen=True, slots=True)
class Output:
    """New output tokens of one attempt. `index` counts the turn's output tokens before the first of `tokens`.

    `text` is what these tokens complete; `finish` ends the attempt; `scores` of the prompt come with the turn's first
    token, where they were asked for. `handoff` comes with the first
    tokens, and again with the last when it changed meanwhile. `ends` are where in `text` that of each token but the
    last ends; empty where all of it belongs to the last. `promise` comes with the last, where retention was asked for.
    """

    ref: Ref
    index: int
    tokens: tuple[Sampled, ...]
    text: str
    finish: FinishReason | None = None
    handoff: Handoff | None = None
    scores: PromptScores | None = None
    ends: tuple[int, ...] = ()
    promise: Promise | None = None


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The attempt is over on this worker, by its fault or because it does not know it. The gateway decides."""

    ref: Ref
    error: BatonError


@quick
@dataclass(frozen=True, slots=True)
class StepBatch:
    """All that one engine step has for one gateway, and what grants that are over came to."""

    outputs: tuple[Output | AttemptFailed, ...]
    load: Load | None = None
    kept: tuple[KeptFor, ...] = ()


@dataclass(frozen=True, slots=True)
class TicketPage:
    """A page that the ticket asks for: its place in the sequence, its identity, its tokens."""

    index: int
    id: PageId
    valid_tokens: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A path to a receiver that some senders can take: what kind it is, and where it ends."""

    transport: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to write certain pages into one reservation, once. `epoch` fences messages of older transfers.

    `boot` is the generation of the receiving worker; `endpoint` and `transport` say where and how it receives from
    everybody, `offers` how from some, best first. `encoding` is how small pages may be made for the way. `dtypes` are
    those of senders whose values may be rounded to `dtype`, on the way or there; `parts`: pages may come in parts.
    `role` is the receiver's.
    """

    transfer: TransferId
    epoch: int
    boot: BootId
    transport: str
    endpoint: str
    fingerprint: str
    dtype: str
    pages: tuple[TicketPage, ...]
    remaining_ms: int
    offers: tuple[Offer, ...] = ()
    encoding: Encoding = Encoding.PLAIN
    dtypes: tuple[str, ...] = ()
    parts: bool = False
    role: str = "decode"

    def takes(self, dtype: str) -> bool:
        """Whether it takes pages of one that computes in this data type."""
        return dtype == self.dtype or dtype in self.dtypes


@dataclass(frozen=True, slots=True)
class PrefillCall:
    """Compute KV for all of `tokens` but the last and push the ticket's pages."""

    tenant: TenantId
    tokens: tuple[int, ...] = field(repr=False)
    ticket: Ticket
    priority: int = 0
    session: SessionId | None = None


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """What a prefill worker did: tokens it had cached, pages and payload bytes it pushed. `prefill_ms` is how long it
    computed, waiting included, `exposed_ms` how long it pushed after that."""

    cached_tokens: int
    pages: int
    payload_bytes: int
    prefill_ms: float = 0.0
    exposed_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Path:
    """How a worker sends pages to the generation `boot` of another, why so, and what went that way. `busy_ms` is how
    long it waited until they were taken."""

    boot: BootId
    transport: str
    reason: str
    transfers: int
    bytes: int
    busy_ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A worker's KV traffic since it started: the paths it sends by, and what it refused to take, by reason. Of what
    arrived, `exposed_ms` is how long it went on pushing after all was computed, which took `prefill_ms`."""

    paths: tuple[Path, ...] = ()
    refused: tuple[tuple[str, int], ...] = ()
    prefill_ms: float = field(default=0.0, compare=False)
    exposed_ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class MirrorReport:
    """What became of the pages that a worker was to have copies of since it started. `waiting` of them wait now;
    `dropped` waited too long or were gone before their turn, `failures` counts what its holders refused or broke."""

    pages: int = 0
    bytes: int = 0
    waiting: int = 0
    dropped: int = 0
    failures: int = 0


def link_speeds(traffic: Traffic) -> tuple[tuple[str, float], ...]:
    """Gigabytes a second by each transport that sent any."""
    taken: dict[str, tuple[int, float]] = {}
    for path in traffic.paths:
        size, ms = taken.get(path.transport, (0, 0.0))
        taken[path.transport] = size + path.bytes, ms + path.busy_ms
    return tuple((transport, size / ms / 1e6) for transport, (size, ms) in sorted(taken.items()) if size and ms)


@dataclass(frozen=True, slots=True)
class PageForm:
    """How a worker's pages look: of which data type its values are, of which others it takes them and rounds, and its
    groups of layers. An older worker says nothing: then its pages are of one group, of keys and values."""

    dtype: str = ""
    dtypes: tuple[str, ...] = ()
    groups: tuple[LayerGroup, ...] = ()

    def takes(self, dtype: str) -> bool:
        """Whether it takes pages of one that computes in this data type."""
        return not self.dtype or not dtype or dtype == self.dtype or dtype in self.dtypes


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered worker as the view shows it. `boot` is its generation, chosen anew at every start; `address` is
    host:port of its gRPC server, `device` a word for what it computes on, such as `cpu x1`; `frame_version` is that of
    its page format. `draining`: it is about to leave, and nothing new is placed on it."""

    id: WorkerId
    boot: BootId
    role: str
    address: str
    model: str
    kv_fingerprint: str
    serving_fingerprint: str
    max_tokens: int
    page_tokens: int
    device: str
    load: Load | None = None
    frame_version: int = 1
    draining: bool = False
    traffic: Traffic = Traffic()
    tiers: tuple[TierReport, ...] = ()
    pages: PageForm = PageForm()
    profile: Profile = UNMEASURED
    mirror: MirrorReport | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker that was turned away: which of its fields does not fit, and why in words."""

    worker: WorkerId
    boot: BootId
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """Who serves, as the controller last knew. Ordered by (incarnation, version). While `settling` a worker that is
    missing may only not have registered with this controller yet."""

    incarnation: int
    version: int
    workers: tuple[Worker, ...] = ()
    settling: bool = False
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """First on a stream from a gateway to a decode worker."""

    gateway: GatewayId
