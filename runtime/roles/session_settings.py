"""How often the owner of sessions does what, and how long it is patient."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """`lease_s`: an owner that is silent for so long has lost its turns; it beats every `beat_s`, and takes over up to
    `adopt_at_once` turns at a time. `retry_s`: a write that the store did not answer is tried again; after
    `store_grace_s` of that the turn is left to a later owner. `poll_s`: how often a turn that runs elsewhere is looked
    at. Texts above `inline_chars` are rendered off the event loop. Expired sessions are looked for every `sweep_s`."""

    lease_s: float = 5.0
    beat_s: float = 1.0
    adopt_at_once: int = 64
    retry_s: float = 0.2
    store_grace_s: float = 30.0
    poll_s: float = 0.1
    inline_chars: int = 16_384
    sweep_s: float = 10.0
