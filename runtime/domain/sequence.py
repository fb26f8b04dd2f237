"""What is generated: token ids so far, how to sample the next, and where it ends. Never how it is computed."""

import enum
from dataclasses import dataclass, field

from runtime.domain.grammar import Grammar
from runtime.domain.records import quick
from runtime.domain.sampling import (
    NO_PENALTIES,
    Penalties,
    Rule,
    banned_rules,
    between,
    enforce,
    logit_bias_rules,
    share,
)
from runtime.domain.scoring import check_scores
from runtime.errors import InvalidArgument
from runtime.ids import SequenceId, SessionId, TurnId

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
_SEED_RULE = f"must be between 0 and {MAX_SEED}"


class FinishReason(enum.StrEnum):
    """Why a sequence ended; `stop` is an end-of-turn token, a stop id or a stop string."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@quick
@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when generation ends. What each does to logits: runtime/domain/sampling.py.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 are off; `logprobs` None is off, n
    asks for the n most likely tokens beside the chosen one, `prompt_logprobs` for those beside each of the prompt's.
    Before `min_tokens` nothing ends the answer. The last token of a sequence of `banned_tokens` is never chosen where
    the output ends with those before it. An answer that is not cut short matches its `grammar`, and ends where nothing
    can follow. Randomness is a pure function of (seed, absolute position).
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    penalties: Penalties = NO_PENALTIES
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    banned_tokens: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None

    def validate(self) -> None:
        """Raise `InvalidArgument` naming the first field out of its range. What most requests leave as it is costs
        nothing to look at."""
        enforce(
            (
                ("max_tokens", self.max_tokens, self.max_tokens >= 1, "must be at least 1"),
                between("temperature", self.temperature, 0, 2),
                ("top_k", self.top_k, self.top_k >= 0, "must be 0 (off) or more"),
                share("top_p", self.top_p),
                between("min_p", self.min_p, 0, 1),
                share("typical_p", self.typical_p),
                ("seed", self.seed, 0 <= self.seed <= MAX_SEED, _SEED_RULE),
                between("min_tokens", self.min_tokens, 0, self.max_tokens),
            )
        )
        if self.penalties is not NO_PENALTIES:
            enforce(self.penalties.rules())
        if self.logit_bias:
            enforce(logit_bias_rules(self.logit_bias))
        if self.banned_tokens:
            enforce(banned_rules(self.banned_tokens))
        if self.stop or self.stop_token_ids:
            enforce(self._end_rules())
        if self.logprobs is not None:
            enforce((between("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS),))
        if self.prompt_logprobs is not None:
            enforce((between("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS),))
        if self.grammar is not None:
            enforce(self.grammar.rules())

    def check_prompt(self, tokens: int) -> None:
        """Raise `InvalidArgument` when a prompt of so many tokens is too long for what is asked of it."""
        if self.prompt_logprobs is not None:
            check_scores(self.prompt_logprobs, tokens)

    def check_vocabulary(self, vocab: int) -> None:
        """Raise `InvalidArgument` naming the first field with a token id that a model of `vocab` tokens has not."""
        for name, tokens in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", [token for token, _ in self.logit_bias]),
            ("banned_tokens", [token for sequence in self.banned_tokens for token in sequence]),
        ):
            if tokens and not (min(tokens) >= 0 and max(tokens) < vocab):
                raise InvalidArgument(f"{name} holds a token id outside the vocabulary of {vocab}", field=name)

    def _end_rules(self) -> tuple[Rule, ...]:
        stop, ids = self.stop, self.stop_token_ids
        short = all(len(each) <= MAX_STOP_CHARACTERS for each in stop)
        return (
            ("stop", stop, len(stop) <= MAX_STOP_STRINGS, f"takes at most {MAX_STOP_STRINGS} strings"),
            ("stop", stop, all(stop), "must not hold an empty string"),
            ("stop", stop, short, f"takes strings of at most {MAX_STOP_CHARACTERS} characters"),
            ("stop_token_ids", ids, len(ids) <= MAX_STOP_TOKEN_IDS, f"takes at most {MAX_STOP_TOKEN_IDS} token ids"),
        )


@quick
@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Which try of which turn: every command to a decode worker and every output from it carries one.

    Ordered by (turn, epoch, attempt): of one turn, the greater Ref is the newer.
    """

    turn: TurnId
    epoch: int
    attempt: int

    @property
    def sequence(self) -> SequenceId:
        return SequenceId(f"{self.turn}/{self.epoch}.{self.attempt}")


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence as an engine gets it.

    `prompt` are the request's token ids; `forced` the tokens that this turn already gave out, replayed without
    sampling. `salt` is the tenant's secret that keys its page ids. The lower `priority` comes first. `session` is whose
    content it is.
    """

    id: SequenceId
    prompt: tuple[int, ...]
    sampling: Sampling
    salt: bytes = field(repr=False)
    forced: tuple[int, ...] = ()
    priority: int = 0
    session: SessionId | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.forced

    @property
    def scored(self) -> int | None:
        """The `prompt_logprobs` that it is owed: those of a turn come with its first token."""
        return None if self.forced else self.sampling.prompt_logprobs


@quick
@dataclass(frozen=True, slots=True)
class Sampled:
    """One chosen token; `logprob` is of the untempered distribution, `top` the most likely (token, logprob) pairs."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
