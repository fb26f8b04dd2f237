"""An engine that is watched at work: how fast its steps are, what it holds. `ports.Engine`, around any other."""

from collections.abc import AsyncIterator, Callable, Sequence

from runtime.domain.profile import Speedometer
from runtime.domain.steps import EngineCommand, Load, StepOutput
from runtime.ids import PageId
from runtime.ports import Engine


class Measured:
    """`holds` is told which pages came into the prefix cache, and which left it."""

    def __init__(
        self, engine: Engine, speed: Speedometer, holds: Callable[[Sequence[PageId], Sequence[PageId]], None]
    ) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._speed = speed
        self._holds = holds

    def match(self, chain: Sequence[PageId]) -> int:
        return self._engine.match(chain)

    def tell(self, command: EngineCommand) -> None:
        self._engine.tell(command)

    def load(self) -> Load:
        return self._engine.load()

    def check(self) -> None:
        self._engine.check()

    async def steps(self) -> AsyncIterator[StepOutput]:
        async for step in self._engine.steps():
            if step.ran_tokens:
                self._speed.ran(step.prefilled, step.ran_tokens - step.prefilled, step.reached, step.took_ms)
            if step.stored or step.removed:
                self._holds(step.stored, step.removed)
            yield step
