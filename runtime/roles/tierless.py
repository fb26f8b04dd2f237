"""`ports.Tiers` of a worker that has nothing behind its pool."""

from collections.abc import Sequence

from runtime.domain.steps import StepOutput
from runtime.domain.tiers import TierReport
from runtime.ids import PageId, SessionId
from runtime.ports import Loading


class Tierless:
    def match(self, _chain: Sequence[PageId], start: int) -> int:
        return start

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> Loading:
        raise AssertionError("there is nothing to load")

    def on_step(self, step: StepOutput) -> None:
        """Nothing is kept."""

    async def forget(self, _session: SessionId) -> tuple[int, int]:
        return 0, 0

    def reports(self) -> tuple[TierReport, ...]:
        return ()


TIERLESS = Tierless()
