"""What a request and the tiers behind its worker's pool say to each other."""

from dataclasses import dataclass

from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier


@dataclass(frozen=True, slots=True)
class LoadPages:
    """Land what the tiers have of the pages beyond `local_tokens`; `transfer` numbers it, as it does transfers."""

    transfer: int
    local_tokens: int


@dataclass(frozen=True, slots=True)
class PageLoaded:
    """A verified page of a tier. They come in the order of the prompt, without a gap."""

    transfer: int
    frame: Frame
    tier: Tier


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """The tiers have no more of the prompt, or not in time."""

    transfer: int
