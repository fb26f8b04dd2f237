"""One sequence in its engine: where it stands, which pages it holds, how far it is computed. Never decides who runs."""

import enum
from dataclasses import dataclass, field

from runtime.domain.pages import pages_for
from runtime.domain.scoring import Score
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Chunk, DecodeAwaiting, Prefill, Work
from runtime.ids import PageId


class Phase(enum.Enum):
    WAITING = "waiting"
    AWAITING = "awaiting"
    LANDED = "landed"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Ready:
    """A page of a `Prefill` that is complete: page `index` of the sequence, in pool page `page`."""

    index: int
    page: int
    valid_tokens: int
    id: PageId


@dataclass(slots=True, eq=False)
class Entry:
    """`target`: how many tokens need KV before this sequence is done with what it knows so far. `unscored`: the place
    of the first token of the prompt whose logits are still wanted, to score the next one; None when no more are.
    `number`: how many came before it. `charged`: tokens of it that its tenant was charged for."""

    sequence: Sequence
    work: Work
    tokens: list[int]
    target: int
    phase: Phase = Phase.WAITING
    computed: int = 0
    published: int = 0
    table: list[int] = field(default_factory=list)
    chain: list[PageId] = field(default_factory=list)
    local: int = 0
    landed: dict[int, int] = field(default_factory=dict)
    exported: int = 0
    unscored: int | None = None
    number: int = 0
    charged: int = 0

    @property
    def reusable(self) -> int:
        """Tokens whose KV need not be computed here: those from whose logits nothing is wanted any more."""
        if isinstance(self.work, Prefill):
            return self.target
        return len(self.tokens) - 1 if self.unscored is None else self.unscored

    @property
    def sparing(self) -> bool:
        """Whether it takes no room that others here wait for, or that grants keep."""
        return isinstance(self.work, DecodeAwaiting) and self.work.sparing

    def end(self, scores: int) -> int:
        """Up to where it may run in a step that has room for so many scores."""
        if self.unscored is None:
            return self.target
        return min(self.target, max(self.computed, self.unscored) + scores)

    def chunk(self, end: int, page_tokens: int) -> Chunk:
        """Its tokens up to `end` that have no KV yet, for the next step."""
        return Chunk(
            self.sequence.id,
            tuple(self.tokens[self.computed : end]),
            self.computed,
            tuple(self.table[: pages_for(end, page_tokens)]),
            end == len(self.tokens) and not isinstance(self.work, Prefill),
            self._score(end),
        )

    def _score(self, end: int) -> Score | None:
        top = self.sequence.scored
        if self.unscored is None or top is None:
            return None
        targets = self.sequence.prompt[max(self.computed, self.unscored) + 1 : end + 1]
        return Score(targets, top) if targets else None

    def advance(self, computed: int) -> None:
        """Its first `computed` tokens have KV now."""
        self.computed = computed
        if self.unscored is not None:
            self.unscored = max(self.unscored, computed)
            if self.unscored >= len(self.sequence.prompt) - 1:
                self.unscored = None
