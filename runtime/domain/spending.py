"""What a session may spend, has spent, and holds in reserve for turns that run; what one of these may still take.

A turn holds a slice of everything before it spends any of it, asks for the next in time, and ends where nothing is
left: so branches that run at once never exceed the limits together (invariant 12). Values and rules; a store keeps
them.
"""

import enum
from dataclasses import dataclass, replace

from runtime.errors import BatonError, BudgetSpent, InvalidArgument, ResourceExhausted

SLICE_TOKENS = 256
SLICE_MS = 30_000
MAX_LIMIT = 2**62
_SOON_TOKENS = SLICE_TOKENS // 4
_SOON_MS = 100


class Measure(enum.StrEnum):
    """What is counted, in the order of `Amounts`."""

    PROMPT = "prompt_tokens"
    CACHED = "cached_tokens"
    COMPLETION = "completion_tokens"
    TURNS = "turns"
    WALL = "wall_ms"
    KV = "kv_byte_seconds"


@dataclass(frozen=True, slots=True)
class Amounts:
    """So much of each. `prompt_tokens` are those that were computed; `kv_byte_seconds` bytes of KV times the seconds
    that they were held, by turns or while the session was away."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    turns: int = 0
    wall_ms: int = 0
    kv_byte_seconds: int = 0

    @property
    def each(self) -> tuple[int, int, int, int, int, int]:
        return (
            self.prompt_tokens,
            self.cached_tokens,
            self.completion_tokens,
            self.turns,
            self.wall_ms,
            self.kv_byte_seconds,
        )

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(*(one + two for one, two in zip(self.each, other.each, strict=True)))

    def __sub__(self, other: "Amounts") -> "Amounts":
        return Amounts(*(one - two for one, two in zip(self.each, other.each, strict=True)))


NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each that a session may spend; None is no bound."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    turns: int | None = None
    wall_ms: int | None = None
    kv_byte_seconds: int | None = None

    @property
    def each(self) -> tuple[int | None, ...]:
        return (
            self.prompt_tokens,
            self.cached_tokens,
            self.completion_tokens,
            self.turns,
            self.wall_ms,
            self.kv_byte_seconds,
        )

    def validate(self) -> None:
        """Raise `InvalidArgument` naming the first that no store can hold."""
        for measure, limit in zip(Measure, self.each, strict=True):
            if limit is not None and not 0 <= limit <= MAX_LIMIT:
                raise InvalidArgument(f"limits.{measure} must be 0 to {MAX_LIMIT}", field=f"limits.{measure}")


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a turn holds, and the time and KV that its earlier owners took of it."""

    held: Amounts = NOTHING
    took: Amounts = NOTHING


NO_RESERVE = Reserve()


@dataclass(frozen=True, slots=True)
class Account:
    """A session's limits beside what was spent by turns that ended, and what those that run hold together. `version`
    counts its changes from 1, `notices` what happened to it; it expires when nothing happens for `ttl_ms`, which would
    be in `expires_in_ms`."""

    limits: Limits = Limits()
    used: Amounts = NOTHING
    held: Amounts = NOTHING
    version: int = 1
    notices: int = 0
    ttl_ms: int | None = None
    expires_in_ms: int | None = None

    def granted(self, held: Amounts, want: Amounts) -> Amounts:
        """What a turn that holds `held` may hold when it wants `want` in all: never less than it has."""
        free = self._free()
        each = zip(held.each, want.each, free, strict=True)
        return Amounts(*(max(has, wants if left is None else min(wants, has + left)) for has, wants, left in each))

    def refusal(self, want: Amounts) -> BatonError | None:
        """Why a turn that would hold `want` does not begin: of what it cannot do without, too little is left."""
        for measure, wants, limit, left in zip(Measure, want.each, self.limits.each, self._free(), strict=True):
            least = wants if measure in _AT_ONCE else min(wants, 1)
            if limit is None or left is None or left >= least:
                continue
            used = getattr(self.used, measure)
            told = f"the session has spent {used:,} of {limit:,} {measure}"
            if used + least > limit:
                needs = f", and this turn may take {least:,}" if measure in _AT_ONCE else ""
                return BudgetSpent(told + needs, field=f"limits.{measure}")
            held = f"{told}, and turns that run hold {getattr(self.held, measure):,}"
            return ResourceExhausted(held, field=f"limits.{measure}", retry_after_ms=1000)
        return None

    def lacks_kv(self, want: Amounts) -> bool:
        """Whether there is less KV left than is wanted, or would be but for what is held."""
        limit = self.limits.kv_byte_seconds
        return limit is not None and (self.used + self.held + want).kv_byte_seconds > limit

    def _free(self) -> tuple[int | None, ...]:
        each = zip(self.limits.each, (self.used + self.held).each, strict=True)
        return tuple(None if limit is None else max(limit - taken, 0) for limit, taken in each)


NO_ACCOUNT = Account()
# What a turn takes at once, and so not in slices.
_AT_ONCE = frozenset({Measure.PROMPT, Measure.CACHED, Measure.TURNS})


def first_slice(prompt: int, max_tokens: int, token_bytes: int, keep_ms: int = 0) -> Amounts:
    """What a turn wants to hold before it begins: all that its prompt of so many tokens can cost, cached or not, and a
    slice of the rest. `token_bytes` are the KV of one token, which is to be kept for `keep_ms` after it."""
    tokens = min(max_tokens, SLICE_TOKENS)
    return Amounts(prompt, prompt, tokens, 1, SLICE_MS, _kv(token_bytes * (prompt + tokens), SLICE_MS + keep_ms))


class Purse:
    """What a turn that runs holds. `tokens` are those of its answer so far, `ran` its time and KV so far; `keep_ms` is
    for how long its KV is to be kept after it."""

    def __init__(self, held: Amounts, prompt: int, max_tokens: int, token_bytes: int, keep_ms: int = 0) -> None:
        self.held = held
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._token_bytes = token_bytes
        self._keep_ms = keep_ms
        self._no_more_than: int | None = None

    def fits(self, tokens: int) -> bool:
        return tokens <= self.held.completion_tokens

    def low(self, tokens: int) -> bool:
        """Whether to ask for more tokens now, so that nothing waits for them later."""
        has = self.held.completion_tokens
        return has < self._max_tokens and tokens + _SOON_TOKENS > has and has != self._no_more_than

    def want(self, tokens: int, ran: Amounts) -> Amounts:
        """What to hold next, in all."""
        most = max(min(self._max_tokens, tokens + SLICE_TOKENS), tokens)
        kv = ran.kv_byte_seconds + _kv(self._token_bytes * (self._prompt + most), SLICE_MS + self._keep_ms)
        return replace(self.held, completion_tokens=most, wall_ms=ran.wall_ms + SLICE_MS, kv_byte_seconds=kv)

    def take(self, held: Amounts) -> None:
        """What the store has granted."""
        if held.completion_tokens == self.held.completion_tokens:
            self._no_more_than = held.completion_tokens
        self.held = held

    def took(self, counted: Amounts, ran: Amounts, limit: Measure | None) -> Amounts:
        """What a turn that ends has spent: what was counted, and no more time and KV than it held, however late its
        owner was; of KV all of that, where it is over."""
        wall = min(ran.wall_ms, self.held.wall_ms)
        kv = min(ran.kv_byte_seconds, self.held.kv_byte_seconds)
        return replace(counted, wall_ms=wall, kv_byte_seconds=self.held.kv_byte_seconds if limit is Measure.KV else kv)

    def keeps(self, took: Amounts, tokens: int, keep_ms: int) -> tuple[int, int]:
        """Of a turn that ends and took so much: the bytes of so many tokens' KV, and for how long of `keep_ms` what it
        holds allows to keep them."""
        size = self._token_bytes * tokens
        left = max(self.held.kv_byte_seconds - took.kv_byte_seconds, 0)
        return size, min(keep_ms, left * 1000 // size) if size else keep_ms

    def left_ms(self, tokens: int, ran: Amounts) -> int:
        """How much longer what is held lasts."""
        wall = self.held.wall_ms - ran.wall_ms
        rate = self._token_bytes * (self._prompt + tokens)
        if not rate:
            return wall
        return min(wall, (self.held.kv_byte_seconds - ran.kv_byte_seconds) * 1000 // rate)

    def ask_in_ms(self, tokens: int, ran: Amounts) -> int:
        """When to ask for more time: in time, and where none was granted not all the while."""
        left = max(self.left_ms(tokens, ran), 1)
        return left // 2 if left > 2 * _SOON_MS else left

    def out_of(self, ran: Amounts) -> Measure:
        """Which of time and KV is over."""
        return Measure.WALL if ran.wall_ms >= self.held.wall_ms else Measure.KV


class Meter:
    """How long a turn has run here and what its KV came to, on top of what it took before. Told the seconds."""

    def __init__(self, token_bytes: int, before: Amounts, now: float) -> None:
        self._token_bytes = token_bytes
        self._before = before
        self._began = self._last = now
        self._byte_s = 0.0

    def read(self, now: float, tokens: int) -> Amounts:
        """`tokens` have KV since the reading before."""
        self._byte_s += (now - self._last) * tokens * self._token_bytes
        self._last = now
        ran = Amounts(wall_ms=round((now - self._began) * 1000), kv_byte_seconds=round(self._byte_s))
        return self._before + ran


def _kv(held_bytes: int, milliseconds: int) -> int:
    return -(-held_bytes * milliseconds // 1000)
