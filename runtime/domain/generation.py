"""What a client asks of a gateway and what it gets back: the face between the services and the gateway role."""

from dataclasses import dataclass, field

from runtime.domain.messages import Handoff
from runtime.domain.sequence import FinishReason, Sampled, Sampling
from runtime.ids import TenantId


@dataclass(frozen=True, slots=True)
class Generation:
    """One stateless request, already tokenized. `deadline_s` bounds it from its arrival to its last token."""

    model: str
    prompt: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    tenant: TenantId
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New output tokens and the text they complete; text may be empty while a character or a stop string is held back.

    `index` counts the output tokens before the first of `tokens`. `handoff` comes with the first delta, `finish`
    with the last. `attempt` is above 1 after a failover.
    """

    index: int
    tokens: tuple[Sampled, ...]
    text: str
    finish: FinishReason | None = None
    handoff: Handoff | None = None
    attempt: int = 1
