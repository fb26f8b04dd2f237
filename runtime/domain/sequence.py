"""What is generated: token ids so far, how to sample the next, and where it ends. Never how it is computed."""

import enum
import math
from dataclasses import dataclass, field

from runtime.errors import InvalidArgument
from runtime.ids import SequenceId, TurnId

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1
_SHOWN = 200


class FinishReason(enum.StrEnum):
    """Why a sequence ended; `stop` is an end-of-turn token, a stop id or a stop string."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when generation ends.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; `logprobs` None is off, n asks for the n most likely
    tokens beside the chosen one. Randomness is a pure function of (seed, absolute position).
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

    def validate(self) -> None:
        """Raise `InvalidArgument` naming the first field out of its range."""
        for name, good, rule in (
            ("max_tokens", self.max_tokens >= 1, "must be at least 1"),
            (
                "temperature",
                math.isfinite(self.temperature) and 0 <= self.temperature <= 2,
                "must be between 0 and 2",
            ),
            ("top_k", self.top_k >= 0, "must be 0 (off) or more"),
            ("top_p", math.isfinite(self.top_p) and 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("seed", 0 <= self.seed <= MAX_SEED, f"must be between 0 and {MAX_SEED}"),
            ("stop", len(self.stop) <= MAX_STOP_STRINGS, f"takes at most {MAX_STOP_STRINGS} strings"),
            ("stop", all(self.stop), "must not hold an empty string"),
            (
                "stop",
                all(len(each) <= MAX_STOP_CHARACTERS for each in self.stop),
                f"takes strings of at most {MAX_STOP_CHARACTERS} characters",
            ),
            (
                "stop_token_ids",
                len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
                f"takes at most {MAX_STOP_TOKEN_IDS} token ids",
            ),
            (
                "logprobs",
                self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
                f"must be between 0 and {MAX_TOP_LOGPROBS}",
            ),
        ):
            if not good:
                value = repr(getattr(self, name))
                raise InvalidArgument(f"{name} {rule}, got {value[:_SHOWN]}", field=name)


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
    sampling. `salt` is the tenant's secret that keys its page ids.
    """

    id: SequenceId
    prompt: tuple[int, ...]
    sampling: Sampling
    salt: bytes = field(repr=False)
    forced: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.forced


@dataclass(frozen=True, slots=True)
class Sampled:
    """One chosen token; `logprob` is of the untempered distribution, `top` the most likely (token, logprob) pairs."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
