"""One client of many, as a load sees it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds to the first text and to the end, and how many events the answer came in."""

    first_s: float
    whole_s: float
    events: int


class Caller(Protocol):
    async def call(self, prompt: str) -> Answer:
        """One request, streamed to its end; raises a `BatonError` when it fails."""

    async def close(self) -> None: ...
