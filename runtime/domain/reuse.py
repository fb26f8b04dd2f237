"""Where the KV of a turn's prompt came from, and why not all that its branch had before was there again."""

import enum
from dataclasses import dataclass

from runtime.domain.generation import Handoffs
from runtime.ids import BootId


class Missed(enum.StrEnum):
    """`never_stored`: the last token of an answer, and a page that is not full, are never cached. `drift`: rendered
    anew, the conversation reads otherwise. `model_changed`: the weights are others than with the last turn.
    `branch_cold`: another worker, or a restarted one, runs this turn. `evicted`: the same worker needed the room."""

    NEVER_STORED = "never_stored"
    DRIFT = "drift"
    MODEL_CHANGED = "model_changed"
    BRANCH_COLD = "branch_cold"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class Sources:
    """Tokens of a prompt, which add up: found in the decode worker's own pool, handed over from where another worker
    had them, computed. `missed` are those of the computed ones that the branch had before, `why` says why the first of
    them was."""

    pool: int
    handed_over: int
    computed: int
    missed: int = 0
    why: Missed | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What a branch had before a turn: `tokens` of committed context, of which rendering anew does not repeat the last
    `drift`, run last by the worker `boot` with the KV of `fingerprint`. The turn is served with that of `serves`."""

    tokens: int
    drift: int
    boot: BootId | None
    fingerprint: str | None
    serves: str
    page_tokens: int

    def sources(self, prompt: int, handoffs: Handoffs) -> Sources | None:
        """As the first attempt found it; None when no worker began."""
        if handoffs.first is None:
            return None
        reused = handoffs.cached_tokens(prompt)
        pool = min(handoffs.first.cached_tokens, reused)
        missed = max(min(self.tokens, prompt) - reused, 0)
        why = self._why(reused, handoffs.boot) if missed else None
        return Sources(pool, reused - pool, prompt - reused, missed, why)

    def _why(self, reused: int, boot: BootId | None) -> Missed:
        repeated = self.tokens - self.drift
        # The KV of a token comes with the step after it, which the last one of an answer does not have.
        stored = (repeated - (not self.drift)) // self.page_tokens * self.page_tokens
        if self.boot is None or reused >= stored:
            return Missed.DRIFT if self.drift and self.boot is not None else Missed.NEVER_STORED
        if self.fingerprint is not None and self.fingerprint != self.serves:
            return Missed.MODEL_CHANGED
        return Missed.EVICTED if boot == self.boot else Missed.BRANCH_COLD
