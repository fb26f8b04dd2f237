"""Judges what one user sees of one turn, over all streams that brought it: no gap, no repetition, one end."""

from dataclasses import dataclass, field

from runtime.domain.sessions import Ending, Progress
from runtime.mesh.checking.tables import Violated


@dataclass(slots=True)
class Watching:
    """`seq` is that of the last event; the next stream is asked for what is after it."""

    who: str
    violated: Violated
    seq: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ending: Ending | None = None

    def take(self, progress: Progress) -> None:
        if self.ending is not None:
            self.violated(7, f"{self.who} got more after the end")
        for event in progress.events:
            if (event.seq, event.index) != (self.seq + 1, len(self.tokens)):
                told = f"event {event.seq} at token {event.index} after event {self.seq} and {len(self.tokens)} tokens"
                self.violated(7, f"{self.who} got {told}")
            self.seq = event.seq
            self.tokens += event.tokens
            self.text += event.text
        self.ending = progress.turn.ending
        if self.ending is not None and self.ending.spent.completion > len(self.tokens):
            bill = f"{self.ending.spent.completion} tokens are billed and {len(self.tokens)} were given"
            self.violated(12, f"{self.who}: {bill}")
