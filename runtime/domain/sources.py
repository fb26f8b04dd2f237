"""Where the KV of one request's prompt comes from: the pool, the tiers behind it, prefill workers; and how much did.

Never decides when: that is the request's table.
"""

from dataclasses import dataclass, replace

from runtime.domain.messages import Handoff, PrefillCandidate, PrefillDone, Start
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier


@dataclass(frozen=True, slots=True)
class Policy:
    """`remote_min_tokens`: an uncached suffix at least this long is prefilled elsewhere. `detached_tokens` bounds
    what is buffered for a gateway that is away; `transfers` bounds how many prefill workers are tried."""

    remote_min_tokens: int
    detached_tokens: int
    transfers: int


class Sources:
    """`needed` tokens of KV may come from elsewhere: all but the last, which runs here. `verified` are the places of
    pages that came."""

    def __init__(self, start: Start, policy: Policy) -> None:
        self.handoff = Handoff(prompt_tokens=len(start.prompt))
        self.verified: set[int] = set()
        self.needed = len(start.prompt) + len(start.forced) - 1
        self.local_tokens = 0
        self.stored_tokens = 0
        self._candidates = [] if start.scored else list(start.candidates[: policy.transfers])

    @property
    def left(self) -> bool:
        """Whether another prefill worker can be asked."""
        return bool(self._candidates)

    @property
    def have(self) -> int:
        """Leading tokens that have KV here, but for what prefill workers sent."""
        return self.local_tokens + self.handoff.loaded_tokens

    def elsewhere(self, have: int, least: int) -> bool:
        """Whether what is missing beyond the first `have` tokens is for a prefill worker, which `least` tokens are
        worth."""
        return self.left and self.needed - have >= max(least, 1)

    def ask(self) -> PrefillCandidate:
        """The next prefill worker."""
        peer = self._candidates.pop(0)
        self.handoff = replace(self.handoff, prefill_worker=peer.worker)
        return peer

    def told(self, done: PrefillDone) -> None:
        self.handoff = self.handoff.told(done)

    def loaded(self, frame: Frame, tier: Tier) -> None:
        self.verified.add(frame.index)
        self.handoff = self.handoff.loaded(tier, frame.valid_tokens)

    def landed(self, frame: Frame) -> None:
        self.verified.add(frame.index)
        pages, size = self.handoff.moved_pages + 1, self.handoff.moved_bytes + len(frame.payload)
        self.handoff = replace(self.handoff, moved_pages=pages, moved_bytes=size)

    def batched(self, cached_tokens: int, landed_tokens: int) -> None:
        """It is in the batch, with so many tokens from the prefix cache and from elsewhere. What was loaded may have
        been lost to a preemption again."""
        if landed_tokens < self.handoff.loaded_tokens:
            self.handoff = replace(self.handoff, host_tokens=0, cold_tokens=0)
        moved = landed_tokens - self.handoff.loaded_tokens
        self.handoff = replace(self.handoff, cached_tokens=cached_tokens, moved_tokens=moved)
