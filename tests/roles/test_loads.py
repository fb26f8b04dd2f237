"""A decode worker with tiers behind its pool: what is read ahead for a request, and until when."""

from collections.abc import AsyncIterator, Sequence

from runtime.domain.sequence import Sampling
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier
from runtime.ids import PageId
from runtime.ports import Loading
from runtime.roles.tierless import Tierless
from tests.roles.one_decode_worker import PROMPT, decode_worker, start, until
from tests.roles.virtual import in_virtual_time


class Reading:
    """Brings nothing."""

    def __init__(self) -> None:
        self.found: list[tuple[Frame, Tier]] = []
        self.closed = False

    async def pages(self) -> AsyncIterator[tuple[Frame, Tier]]:
        for each in self.found:
            yield each
        self.close()

    def close(self) -> None:
        self.closed = True


class Promising(Tierless):
    """Has every page, as it says; remembers what was read."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def match(self, chain: Sequence[PageId], start: int) -> int:
        return len(chain)

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> Loading:
        self.readings.append(Reading())
        return self.readings[-1]


@in_virtual_time
async def test_a_request_that_runs_holds_nothing_that_was_read_ahead() -> None:
    async with decode_worker(pages=8) as it, it.gateway() as gateway:
        it.role.tiers = tiers = Promising()
        gateway.link.command(start(turn="one"))
        gateway.link.command(start(turn="two", sampling=Sampling(max_tokens=14, temperature=0.0)))
        await until(lambda: it.engine.load().running == 1)
        assert [each.closed for each in tiers.readings] == [True, False], "the second waits for room"
        await until(lambda: it.engine.load().running == 0)
        await until(lambda: it.engine.load().running == 1)
        assert it.engine.load().pages.cached + it.engine.load().pages.owned > len(PROMPT) // 4
        assert [each.closed for each in tiers.readings] == [True, True], "the pool has its pages since"
