"""An engine whose steps suffer faults on purpose. `ports.Engine`, around any other."""

from collections.abc import AsyncIterator, Sequence

from runtime.domain.steps import EngineCommand, Load, StepOutput
from runtime.ids import PageId
from runtime.kv.transport.faults import Faults, suffer
from runtime.ports import Engine


class Faltering:
    """A fault of a step comes after it ran, and before anybody hears of it."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._faults = faults

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
            for fault in self._faults.due("step") if step.ran_tokens else ():
                await suffer(fault)
            yield step
