"""What a client asks of a gateway and what it gets back: the face between the services and the gateway role."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from runtime.domain.messages import Handoff
from runtime.domain.records import quick
from runtime.domain.retention import NO_RETENTION, Promise, Retention
from runtime.domain.routing import Estimate
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Sampled, Sampling
from runtime.ids import BootId, SessionId, TenantId, TurnId


@dataclass(frozen=True, slots=True)
class Claim:
    """A turn that its owner keeps in a store: the owner's epoch, the tokens that are durable already and will be
    forced, the decode worker that likely has its pages, to be preferred, the session that it is of, and for how long
    its KV is to be kept after it."""

    turn: TurnId
    epoch: int
    given: tuple[int, ...] = ()
    near: BootId | None = None
    session: SessionId | None = None
    retention: Retention = NO_RETENTION


@dataclass(frozen=True, slots=True)
class Generation:
    """One request, already tokenized; stateless without a `claim`. `deadline_s` bounds it from its arrival to its last
    token; of those that wait the lower `priority` comes first."""

    model: str
    prompt: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    tenant: TenantId
    deadline_s: float
    priority: int = 0
    claim: Claim | None = None


@quick
@dataclass(frozen=True, slots=True)
class Delta:
    """New output tokens and the text they complete; text may be empty while a character or a stop string is held back.

    `index` counts the output tokens before the first of `tokens`. `handoff` comes with the first delta of
    an attempt, and again with its last when it changed meanwhile; `finish` comes with the last. `attempt` is above 1
    after a failover, and `boot` the decode worker that it runs on. `scores` of the prompt come with the first token,
    where they were asked for; `why` the attempt is there, where that was weighed, comes with its `handoff`. `ends` and
    `promise` are as in `Output`.
    """

    index: int
    tokens: tuple[Sampled, ...]
    text: str
    finish: FinishReason | None = None
    handoff: Handoff | None = None
    attempt: int = 1
    boot: BootId | None = field(default=None, compare=False)
    scores: PromptScores | None = None
    ends: tuple[int, ...] = ()
    why: Estimate | None = field(default=None, compare=False)
    promise: Promise | None = None

    def texts(self) -> list[str]:
        """The text that each of `tokens` completes."""
        if not self.ends:
            return [""] * (len(self.tokens) - 1) + [self.text] if self.tokens else []
        return [self.text[begin:end] for begin, end in zip((0, *self.ends), (*self.ends, None), strict=True)]

    def first(self, count: int) -> "Delta":
        """Only so many of its tokens, and so not the end that came with the last."""
        return replace(
            self, tokens=self.tokens[:count], text="".join(self.texts()[:count]), finish=None, ends=(), promise=None
        )


def first_of(deltas: Iterable[Delta], tokens: int) -> list[Delta]:
    """Of deltas that follow each other those that have so many tokens together, the last of them cut."""
    found: list[Delta] = []
    for delta in deltas:
        if len(delta.tokens) <= tokens:
            found.append(delta)
        elif tokens > 0:
            found.append(delta.first(tokens))
        tokens -= len(delta.tokens)
        if tokens < 0:
            break
    return found


class Handoffs:
    """How the attempts of a turn got their KV, gathered from its deltas: `newest` of the last attempt, `first` of the
    first, which ran on the worker `boot`."""

    def __init__(self) -> None:
        self.newest: Handoff | None = None
        self.first: Handoff | None = None
        self.boot: BootId | None = None
        self._attempt = 0

    def add(self, delta: Delta) -> None:
        if delta.handoff is None:
            return
        self.newest = delta.handoff
        if self.first is None or delta.attempt == self._attempt:
            self.first, self._attempt, self.boot = delta.handoff, delta.attempt, delta.boot

    def cached_tokens(self, prompt_tokens: int) -> int:
        """As the first attempt found it, since a failover is not the client's doing. Both workers count from the first
        token on, so the longer prefix is what nobody computed."""
        if self.first is None:
            return 0
        here = self.first.cached_tokens + self.first.loaded_tokens + self.first.restored_tokens
        return min(max(here, self.first.prefill_cached_tokens), prompt_tokens)
