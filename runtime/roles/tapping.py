"""An engine that a worker's role and those who hold pages for others both use. `ports.Engine`, around any other.

What the latter asked for is taken out of the steps, so that the role sees an engine of its own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from dataclasses import replace

from runtime.domain.sequence import Sequence
from runtime.domain.steps import (
    Cancel,
    Copied,
    Copy,
    DecodeAwaiting,
    EngineCommand,
    Load,
    NoRoom,
    Reserved,
    SequenceFailed,
    StepOutput,
    Submit,
)
from runtime.ids import PageId, SequenceId
from runtime.ports import Engine

_ASKER = "tap"
_Copies = asyncio.Future[tuple[Copied, ...]]


class Tapped:
    def __init__(self, engine: Engine) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._copies: deque[tuple[int, _Copies]] = deque()
        self._reserving: dict[SequenceId, asyncio.Future[int | None]] = {}

    def match(self, chain: Several[PageId]) -> int:
        return self._engine.match(chain)

    def tell(self, command: EngineCommand) -> None:
        self._engine.tell(command)

    def load(self) -> Load:
        return self._engine.load()

    def check(self) -> None:
        self._engine.check()

    async def steps(self) -> AsyncIterator[StepOutput]:
        async for step in self._engine.steps():
            if self._reserving:
                self._note(step)
            yield self._without_copies(step) if step.copied else step

    def copy(self, pages: tuple[PageId, ...]) -> _Copies:
        """Ask what pages hold; comes with the next step, and never once the engine died."""
        answer: _Copies = asyncio.get_running_loop().create_future()
        self._copies.append((len(pages), answer))
        self._engine.tell(Copy(pages, _ASKER))
        return answer

    @contextmanager
    def reserving(self, sequence: Sequence) -> Iterator[asyncio.Future[int | None]]:
        """Reserve the pages of a sequence that never runs, all but its last token's; what landed in them stays cached.
        The future gives how many of its tokens are here already, None without room; never once the engine died."""
        answer = self._reserving[sequence.id] = asyncio.get_running_loop().create_future()
        self._engine.tell(Submit(sequence, DecodeAwaiting(sparing=True)))
        try:
            yield answer
        finally:
            del self._reserving[sequence.id]
            self.cancel(sequence.id)

    def cancel(self, sequence: SequenceId) -> None:
        """Free what a sequence has reserved, at once; who still waits for it hears that there is no room."""
        self._engine.tell(Cancel(sequence))
        answer = self._reserving.get(sequence)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _note(self, step: StepOutput) -> None:
        for event in step.events:
            answer = self._reserving.get(event.sequence)
            if answer is None or answer.done():
                continue
            match event:
                case Reserved(local_tokens=local_tokens):
                    answer.set_result(local_tokens)
                case NoRoom() | SequenceFailed():
                    answer.set_result(None)

    def _without_copies(self, step: StepOutput) -> StepOutput:
        """Answers come in the order of the questions."""
        mine = deque(copied for copied in step.copied if copied.asker == _ASKER)
        if not mine:
            return step
        while mine:
            count, answer = self._copies.popleft()
            told = tuple(mine.popleft() for _ in range(count))
            if not answer.done():
                answer.set_result(told)
        return replace(step, copied=tuple(copied for copied in step.copied if copied.asker != _ASKER))
