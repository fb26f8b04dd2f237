"""The vocabulary between a worker and its engine: work that goes in, what each engine step brings out.

One `StepOutput` per engine step. Reservation and export are events and not return values, because engines such as
vLLM hand out blocks only by scheduling.
"""

import enum
from dataclasses import dataclass, field

from runtime.domain.pages import Occupancy
from runtime.domain.records import quick
from runtime.domain.retention import Granted, Keeping
from runtime.domain.scoring import PromptScores, Score
from runtime.domain.sequence import FinishReason, Sampled, Sequence
from runtime.errors import BatonError
from runtime.ids import PageId, SequenceId, SessionId


@dataclass(frozen=True, slots=True)
class DecodeLocal:
    """Prefill what the prefix cache lacks here, then decode."""


@dataclass(frozen=True, slots=True)
class DecodeAwaiting:
    """Reserve the prompt's pages, report `Reserved`, and decode once `run` says that all that will land has landed.
    `sparing`: not in room that others here wait for, or that is kept for sessions that are away."""

    sparing: bool = False


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute KV for the first `upto` tokens and export their pages from page `first_page` on; sample nothing.

    An engine that can exports pages while their last tokens are computed, layer by layer: part `n` holds the layers
    from `cuts[n - 1]` up to `cuts[n]`, the last of which is how many layers there are. Others export them whole.
    """

    upto: int
    first_page: int
    cuts: tuple[int, ...] = ()


Work = DecodeLocal | DecodeAwaiting | Prefill


@quick
@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's share of an engine step.

    `tokens` are the new tokens to run, the first at absolute position `start`; `table` are pool page numbers that
    cover `start + len(tokens)` tokens; `sample` asks for a token after the last one, `score` for what the prompt's own
    are worth.
    """

    sequence: SequenceId
    tokens: tuple[int, ...]
    start: int
    table: tuple[int, ...]
    sample: bool
    score: Score | None = None

    @property
    def logits(self) -> int:
        """Of how many of the tokens, the last ones, logits are wanted: those that are scored, then the sampled one."""
        return self.sample if self.score is None else len(self.score.targets) + self.sample


class Encoding(enum.Enum):
    """How a payload is written: as the model computes it, or smaller and with losses for the way between workers.

    `FP8` stays within what every chip's e4m3 has, 240; `FP8_448` goes to the end of OCP's, which some chips lack.
    """

    PLAIN = "plain"
    FP8 = "fp8"
    INT8 = "int8"
    FP8_448 = "fp8_448"


@dataclass(frozen=True, slots=True)
class Part:
    """Of a page, the KV heads from `first_head` on, `heads` of them, in one group of the model's layers."""

    group: int
    first_head: int
    heads: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One KV page as it travels: `payload` is canonical `[layer, k|v, token, kv_head, head_dim]`, little endian, unless
    `encoding` says otherwise.

    `index` is the page's place in its sequence; only the first `valid_tokens` tokens are in the payload. A payload that
    is a view lies in the message that brought it, and keeps it. Without `part` it is the whole page, of all groups one
    after the other; without `dtype` its elements are of the model's.
    """

    page: PageId
    index: int
    valid_tokens: int
    payload: bytes | memoryview = field(repr=False)
    encoding: Encoding = Encoding.PLAIN
    part: Part | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """Room for the prompt is held; its first `local_tokens` tokens are already here."""

    sequence: SequenceId
    local_tokens: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The reservation was not possible now and is forgotten; submit again when pages were freed."""

    sequence: SequenceId


@dataclass(frozen=True, slots=True)
class Admitted:
    """The sequence entered the batch; `cached_tokens` of it came from the prefix cache, `landed_tokens` by transfer."""

    sequence: SequenceId
    cached_tokens: int
    landed_tokens: int


@quick
@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens. `index` counts the output tokens before the first of `tokens`; `text` is what they complete. `scores`
    are of the prompt, with the first token, where they were asked for; `kept` with the last, where that was."""

    sequence: SequenceId
    index: int
    tokens: tuple[Sampled, ...]
    text: str
    finish: FinishReason | None
    scores: PromptScores | None = None
    kept: Granted | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """One more page of a `Prefill` is complete (or its partial tail, at the end), in the canonical layout; or one of
    its parts is."""

    sequence: SequenceId
    frame: Frame


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A `Prefill` is done and all its pages were exported; `cached_tokens` of it were not computed."""

    sequence: SequenceId
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceFailed:
    """The engine gave this sequence up and freed what it held."""

    sequence: SequenceId
    error: BatonError


StepEvent = Reserved | NoRoom | Admitted | Generated | Exported | Prefilled | SequenceFailed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a `Forget` did: pages dropped, and pages of the session that stay because others have used them as well."""

    session: SessionId
    dropped: int
    shared: int


@quick
@dataclass(frozen=True, slots=True)
class Load:
    """What an engine has to do: sequences by state, tokens still to prefill, pages."""

    running: int
    waiting: int
    awaiting: int
    prefill_tokens: int
    pages: Occupancy


@quick
@dataclass(frozen=True, slots=True)
class Filled:
    """Pages of one sequence that are full now: `pages` follow each other from the place `first` on, the first of them
    after `parent`, their ids keyed with `salt`. A page that is cached is told anew for every sequence that uses it, of
    whichever `session`."""

    pages: tuple[PageId, ...]
    first: int
    parent: PageId
    salt: bytes = field(repr=False)
    session: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """What a page holds that a `Copy` asked for; None when the pool has it no more."""

    page: PageId
    payload: bytes | None = field(repr=False)
    asker: str = ""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that one engine step brought, or what it brought already while it runs: then it is told once more, without
    that, when it is over. `step` counts from 1; `pages_freed` wakes those that found no room.

    `ran_tokens` of `ran_sequences` went through the model in this step, of which `prefilled` were of prompts, the
    longest now `reached` tokens long. `took_ms` is how long it ran. `keeping` is what grants have lost.
    """

    step: int
    events: tuple[StepEvent, ...]
    load: Load
    ran_tokens: int = 0
    ran_sequences: int = 0
    pages_freed: bool = False
    stored: tuple[PageId, ...] = ()
    removed: tuple[PageId, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()
    filled: tuple[Filled, ...] = ()
    copied: tuple[Copied, ...] = ()
    prefilled: int = 0
    reached: int = 0
    took_ms: float = 0.0
    keeping: tuple[Keeping, ...] = ()


@dataclass(frozen=True, slots=True)
class Submit:
    sequence: Sequence
    work: Work


@dataclass(frozen=True, slots=True)
class Land:
    """A verified frame for a page that this sequence has reserved."""

    sequence: SequenceId
    frame: Frame


@dataclass(frozen=True, slots=True)
class Run:
    """All that will land has landed; what is missing is recomputed."""

    sequence: SequenceId


@dataclass(frozen=True, slots=True)
class Cancel:
    sequence: SequenceId


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop what the prefix cache has of a session, whose sequences were cancelled before."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Copy:
    """Tell what these pages of the prefix cache hold, all in the `copied` of one step, for an `asker` among several."""

    pages: tuple[PageId, ...]
    asker: str = ""


@dataclass(frozen=True, slots=True)
class Expect:
    """The session of this sequence, which has ended, is likely back so long after its end."""

    sequence: SequenceId
    returns_s: float


@dataclass(frozen=True, slots=True)
class LetGo:
    """Keep the pages of this sequence, which has ended, no more."""

    sequence: SequenceId


EngineCommand = Submit | Land | Run | Cancel | Forget | Copy | Expect | LetGo
