"""Hypothesis strategies for everything that processes say to each other."""

from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from runtime.domain.generation import Delta
from runtime.domain.grammar import Grammar, GrammarKind, one_of
from runtime.domain.messages import (
    Acknowledge,
    Attach,
    CancelAttempt,
    GatewayCommand,
    Handoff,
    Hello,
    Holder,
    MirrorReport,
    Offer,
    Output,
    PageForm,
    Path,
    Paused,
    PrefillCall,
    PrefillCandidate,
    PrefillDone,
    Refused,
    Start,
    StepBatch,
    Ticket,
    TicketPage,
    Traffic,
    View,
    Worker,
)
from runtime.domain.mirroring import MAX_COPIES, FetchCall, Fetched, KeepCall, Kept
from runtime.domain.pages import Occupancy
from runtime.domain.retention import MAX_KEEP_MS, KeptFor, KeptIn, Pause, Promise, Refusal, Retention
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.sampling import Penalties
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import MAX_SEED, FinishReason, Ref, Sampled, Sampling
from runtime.domain.spec import DTYPE_BYTES, Kind, LayerGroup
from runtime.domain.steps import Encoding, Load
from runtime.domain.tiers import Tier, TierReport
from runtime.errors import BatonError, from_code
from runtime.ids import BootId, GatewayId, PageId, SessionId, TenantId, TransferId, TurnId, WorkerId
from runtime.wire.fields import MAX_TOKEN

T = TypeVar("T")
U32 = st.integers(0, 2**32 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)
U64 = st.integers(0, 2**64 - 1)
POSITIVE = st.integers(1, 2**32 - 1)
TOKEN = st.integers(0, MAX_TOKEN)
NAMES = st.text(min_size=1, max_size=128)
ADDRESSES = st.text(min_size=1, max_size=256)
FINGERPRINTS = st.binary(min_size=16, max_size=16).map(bytes.hex)
MILLISECONDS = st.floats(0, 1e12)
LOGPROBS = st.floats(max_value=0, width=32, allow_nan=False)
TOKENS = st.lists(TOKEN, max_size=40).map(tuple)

REFS = st.builds(Ref, NAMES.map(TurnId), st.integers(1, 2**64 - 1), POSITIVE)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, MAX_SEED),
    stop=st.lists(st.text(min_size=1, max_size=20), max_size=16).map(tuple),
    stop_token_ids=TOKENS,
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1, exclude_min=True),
    penalties=st.builds(Penalties, st.floats(0.1, 10), st.floats(-2, 2), st.floats(-2, 2)),
    logit_bias=st.dictionaries(TOKEN, st.floats(-100, 100), max_size=5).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    grammar=st.none()
    | st.lists(st.text(max_size=5), min_size=1, max_size=5).map(one_of)
    | st.builds(Grammar, st.sampled_from(sorted(set(GrammarKind) - {GrammarKind.CHOICE})), st.text(min_size=1)),
    prompt_logprobs=st.none() | st.integers(0, 20),
    banned_tokens=st.lists(st.lists(TOKEN, min_size=1, max_size=5).map(tuple), max_size=4).map(tuple),
).flatmap(lambda sampling: st.integers(0, sampling.max_tokens).map(lambda least: replace(sampling, min_tokens=least)))
CANDIDATES = st.builds(PrefillCandidate, NAMES.map(WorkerId), NAMES.map(BootId), ADDRESSES)
HOLDERS = st.builds(Holder, NAMES.map(WorkerId), NAMES.map(BootId), ADDRESSES, st.sampled_from((PREFILL, DECODE)))
SESSIONS = st.none() | st.text(min_size=1, max_size=64).map(SessionId)
KEEP_MS = st.integers(0, MAX_KEEP_MS)
RETENTIONS = st.builds(Retention, KEEP_MS, KEEP_MS)
PROMISES = st.builds(Promise, U32, RETENTIONS, st.none(), st.sampled_from(KeptIn)) | st.builds(
    Promise, refusal=st.sampled_from(Refusal)
)
SESSION_IDS = st.text(min_size=1, max_size=64).map(SessionId)
STARTS = st.builds(
    Start,
    ref=REFS,
    tenant=NAMES.map(TenantId),
    prompt=st.lists(TOKEN, min_size=1, max_size=40).map(tuple),
    sampling=SAMPLINGS,
    forced=TOKENS,
    candidates=st.lists(CANDIDATES, max_size=4).map(tuple),
    remaining_ms=POSITIVE,
    priority=I32,
    session=SESSIONS,
    holders=st.lists(HOLDERS, max_size=4).map(tuple),
    copies=st.integers(0, MAX_COPIES),
    mirrors=st.lists(HOLDERS, max_size=4).map(tuple),
    retention=RETENTIONS,
)
COMMANDS: st.SearchStrategy[Hello | GatewayCommand] = st.one_of(
    st.builds(Hello, NAMES.map(GatewayId)),
    STARTS,
    st.builds(CancelAttempt, REFS),
    st.builds(Attach, REFS, U32),
    st.builds(Acknowledge, REFS),
    st.builds(Paused, REFS, SESSION_IDS, st.sampled_from(Pause), KEEP_MS),
)

HANDOFFS = st.builds(
    Handoff,
    prompt_tokens=U32,
    cached_tokens=U32,
    moved_tokens=U32,
    moved_pages=U32,
    moved_bytes=U64,
    prefill_worker=st.none() | NAMES.map(WorkerId),
    prefill_cached_tokens=U32,
    transport=st.text(max_size=32),
    wait_ms=MILLISECONDS,
    transfer_ms=MILLISECONDS,
    prefill_ms=MILLISECONDS,
    exposed_ms=MILLISECONDS,
    host_tokens=U32,
    cold_tokens=U32,
    load_ms=MILLISECONDS,
    restored_tokens=U32,
    holder=st.none() | NAMES.map(WorkerId),
    restore_ms=MILLISECONDS,
)
SAMPLED = st.builds(Sampled, TOKEN, LOGPROBS, st.lists(st.tuples(TOKEN, LOGPROBS), max_size=20).map(tuple))


@st.composite
def scores(draw: st.DrawFn) -> PromptScores:
    top, count = draw(st.integers(0, 20)), draw(st.integers(0, 4))
    return PromptScores(
        top,
        draw(_tuples(LOGPROBS, count)),
        draw(_tuples(POSITIVE, count)),
        draw(_tuples(TOKEN, count * top)),
        draw(_tuples(LOGPROBS, count * top)),
    )


def _tuples(of: st.SearchStrategy[T], size: int) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, min_size=size, max_size=size).map(tuple)


FINISHES = st.none() | st.sampled_from(FinishReason)
OUTPUTS = st.builds(
    Output,
    ref=REFS,
    index=U32,
    tokens=st.lists(SAMPLED, max_size=5).map(tuple),
    text=st.text(max_size=40),
    finish=FINISHES,
    handoff=st.none() | HANDOFFS,
    scores=st.none() | scores(),
    promise=st.none() | PROMISES,
)
LOADS = st.builds(Load, U32, U32, U32, U64, st.builds(Occupancy, U32, U32, U32, U32))
KEPT = st.builds(KeptFor, SESSION_IDS, st.text(min_size=1, max_size=64).map(TurnId), U64)
BATCHES = st.builds(
    StepBatch, st.lists(OUTPUTS, max_size=5).map(tuple), st.none() | LOADS, st.lists(KEPT, max_size=3).map(tuple)
)

TRANSPORTS = st.text(min_size=1, max_size=32)
PAGES = st.builds(TicketPage, U32, st.binary(min_size=16, max_size=16).map(PageId), POSITIVE)
DTYPE_LISTS = st.lists(st.sampled_from(sorted(DTYPE_BYTES)), max_size=3).map(tuple)
TICKETS = st.builds(
    Ticket,
    transfer=NAMES.map(TransferId),
    epoch=POSITIVE,
    boot=NAMES.map(BootId),
    transport=st.text(min_size=1, max_size=32),
    endpoint=ADDRESSES,
    fingerprint=FINGERPRINTS,
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    pages=st.lists(PAGES, min_size=1, max_size=5, unique_by=lambda page: page.index).map(
        lambda pages: tuple(sorted(pages, key=lambda page: page.index))
    ),
    remaining_ms=POSITIVE,
    offers=st.lists(st.builds(Offer, TRANSPORTS, ADDRESSES), max_size=4).map(tuple),
    encoding=st.sampled_from(Encoding),
    dtypes=DTYPE_LISTS,
    parts=st.booleans(),
    role=st.sampled_from((PREFILL, DECODE)),
)
KEEP_CALLS = st.builds(
    KeepCall,
    NAMES.map(TenantId),
    st.lists(TOKEN, min_size=2, max_size=40).map(tuple),
    HOLDERS,
    POSITIVE,
    POSITIVE,
    SESSIONS,
)
HELD = st.builds(Kept, U32, U64)
FETCH_CALLS = st.builds(FetchCall, TICKETS, SESSIONS)
FETCHED = st.builds(Fetched, U32, U64)
PREFILL_CALLS = st.builds(
    PrefillCall, NAMES.map(TenantId), st.lists(TOKEN, min_size=2, max_size=40).map(tuple), TICKETS, I32, SESSIONS
)
PREFILLS_DONE = st.builds(PrefillDone, U32, U32, U64, MILLISECONDS, MILLISECONDS)

GROUPS = st.builds(
    lambda kind, heads, head_dim, window: LayerGroup((), 1 if kind is Kind.LATENT else heads, head_dim, kind, window),
    st.sampled_from(Kind),
    st.integers(1, 65_535),
    st.integers(1, 65_535),
    U32,
)


def _apart(groups: list[LayerGroup]) -> tuple[LayerGroup, ...]:
    """With layers of their own each, taking turns."""
    count = len(groups)
    return tuple(replace(group, layers=(number, number + count)) for number, group in enumerate(groups))


PATHS = st.builds(Path, NAMES.map(BootId), TRANSPORTS, st.text(max_size=512), U64, U64)
COUNTS = st.dictionaries(st.text(max_size=64), U64, max_size=4).map(lambda counts: tuple(sorted(counts.items())))
TIERS = st.builds(
    TierReport,
    st.sampled_from(Tier),
    st.text(max_size=100),
    U64,
    U64,
    U64,
    U64,
    U64,
    COUNTS,
    st.text(max_size=512),
)
WORKERS = st.builds(
    Worker,
    id=NAMES.map(WorkerId),
    boot=NAMES.map(BootId),
    role=st.sampled_from((PREFILL, DECODE)),
    address=ADDRESSES,
    model=ADDRESSES,
    kv_fingerprint=FINGERPRINTS,
    serving_fingerprint=FINGERPRINTS,
    max_tokens=POSITIVE,
    page_tokens=POSITIVE,
    device=st.text(max_size=256),
    load=st.none() | LOADS,
    frame_version=st.integers(1, 2**32 - 1),
    draining=st.booleans(),
    traffic=st.builds(
        Traffic,
        st.lists(PATHS, max_size=4).map(tuple),
        COUNTS,
    ),
    tiers=st.lists(TIERS, max_size=3).map(tuple),
    pages=st.builds(
        PageForm,
        st.sampled_from(("", *sorted(DTYPE_BYTES))),
        DTYPE_LISTS,
        st.lists(GROUPS, max_size=4).map(_apart),
    ),
    mirror=st.none() | st.builds(MirrorReport, U64, U64, U64, U64, U64),
)
REFUSED = st.builds(Refused, NAMES.map(WorkerId), NAMES.map(BootId), st.text(max_size=256), st.text(max_size=400))
VIEWS = st.builds(
    View, U64, U64, st.lists(WORKERS, max_size=4).map(tuple), st.booleans(), st.lists(REFUSED, max_size=4).map(tuple)
)


CODES = (
    "invalid context too_large unsupported not_found precondition incompatible stale exhausted unavailable deadline "
    "budget unauthenticated denied cancelled corrupt internal engine poison"
).split()
FIELDS = st.from_regex(r"[a-z_.]{1,256}", fullmatch=True)
ERRORS = st.builds(
    lambda code, message, field, after: from_code(code, message, field=field, retry_after_ms=after),
    st.sampled_from(CODES),
    st.text(max_size=100),
    st.none() | FIELDS,
    st.none() | st.integers(0, 2**32 - 1),
)


def same(one: BatonError, other: BatonError) -> bool:
    return (type(one), one.message, one.field, one.retry_after_ms) == (
        type(other),
        other.message,
        other.field,
        other.retry_after_ms,
    )


@st.composite
def answers(draw: st.DrawFn) -> list[Delta]:
    """The deltas of one whole answer: gapless, with a handoff at the start and a finish at the end."""
    groups = draw(st.lists(st.lists(SAMPLED, min_size=1, max_size=4), min_size=1, max_size=5))
    deltas, index = [], 0
    for group in groups:
        deltas.append(Delta(index, tuple(group), draw(st.text(max_size=10))))
        index += len(group)
    if draw(st.booleans()):
        deltas.append(Delta(index, (), draw(st.text(max_size=10))))
    first, last = deltas[0], deltas[-1]
    deltas[0] = Delta(0, first.tokens, first.text, first.finish, draw(HANDOFFS))
    last = deltas[-1]
    finish, attempt = draw(st.sampled_from(FinishReason)), draw(st.integers(1, 16))
    deltas[-1] = Delta(last.index, last.tokens, last.text, finish, last.handoff, attempt)
    return deltas
