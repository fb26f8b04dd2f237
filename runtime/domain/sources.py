"""Where the KV of one request's prompt comes from: the pool, the tiers behind it, other workers; and how much did.

Never decides when: that is the request's table.
"""

from dataclasses import dataclass, replace

from runtime.domain.messages import Handoff, Holder, PrefillCandidate, PrefillDone, Start
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier


@dataclass(frozen=True, slots=True)
class Policy:
    """`remote_min_tokens`: an uncached suffix at least this long is prefilled elsewhere. `detached_tokens` bounds
    what is buffered for a gateway that is away; `transfers` bounds how many prefill workers are tried. Fewer than
    `fetch_min_tokens` are not worth asking one that holds them."""

    remote_min_tokens: int
    detached_tokens: int
    transfers: int
    fetch_min_tokens: int = 64


class Sources:
    """`needed` tokens of KV may come from elsewhere: all but the last, which runs here. `verified` are the places of
    pages that came."""

    def __init__(self, start: Start, policy: Policy) -> None:
        self.handoff = Handoff(prompt_tokens=len(start.prompt))
        self.verified: set[int] = set()
        self.needed = len(start.prompt) + len(start.forced) - 1
        self.local_tokens = 0
        self.stored_tokens = 0
        self.fetching = False
        self._goes_on = bool(start.forced)
        self._fetch_min = max(policy.fetch_min_tokens, 1)
        self._holders = [] if start.scored else list(start.holders)
        self._candidates = [] if start.scored else list(start.candidates[: policy.transfers])

    @property
    def have(self) -> int:
        """Tokens that have KV here, but for what prefill workers sent."""
        return self.local_tokens + self.handoff.loaded_tokens + self.handoff.restored_tokens

    def elsewhere(self, have: int, least: int) -> bool:
        """Whether what is missing beyond the first `have` tokens is for another worker: one that holds it, or a prefill
        worker, which `least` tokens are worth."""
        missing = self.needed - have
        return self._prefilled(missing, least) or (bool(self._holders) and missing >= self._fetch_min)

    def ask(self, least: int) -> Holder | PrefillCandidate | None:
        """Who is asked next for what is missing: whoever holds it, then prefill workers for `least` tokens or more;
        None when it is computed here. If the best holder is a prefill worker that is asked anyway, it brings what it
        holds itself; but where a stream waits to go on, nothing waits for a prefill."""
        missing = self.needed - self.have
        prefilled = self._prefilled(missing, least)
        known = prefilled and self._holders[:1] and self._holders[0].boot == self._candidates[0].boot
        self.fetching = bool(self._holders) and missing >= self._fetch_min and (self._goes_on or not known)
        if self.fetching:
            holder = self._holders.pop(0)
            self.handoff = replace(self.handoff, holder=holder.worker)
            return holder
        if not prefilled:
            return None
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
        if self.fetching:
            restored = self.handoff.restored_tokens + frame.valid_tokens
            self.handoff = replace(self.handoff, restored_tokens=restored)
            return
        pages, size = self.handoff.moved_pages + 1, self.handoff.moved_bytes + len(frame.payload)
        self.handoff = replace(self.handoff, moved_pages=pages, moved_bytes=size)

    def batched(self, cached_tokens: int, landed_tokens: int) -> None:
        """It is in the batch, with so many tokens from the prefix cache and from elsewhere. What came may have been
        lost to a preemption again."""
        if landed_tokens < self.handoff.loaded_tokens + self.handoff.restored_tokens:
            self.handoff = replace(self.handoff, host_tokens=0, cold_tokens=0, restored_tokens=0)
        moved = landed_tokens - self.handoff.loaded_tokens - self.handoff.restored_tokens
        self.handoff = replace(self.handoff, cached_tokens=cached_tokens, moved_tokens=moved)

    def _prefilled(self, missing: int, least: int) -> bool:
        return bool(self._candidates) and missing >= max(least, 1)
