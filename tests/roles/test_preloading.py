"""Bringing what tiers have of a prompt into a prefill worker's cache. (Most of it is in `test_prefill`.)"""

import asyncio
from collections.abc import Sequence as Pages

from runtime.domain.pages import extend_chain
from runtime.domain.sequence import Sampling, Sequence
from runtime.ids import PageId, SequenceId
from runtime.roles.preloading import Preloading
from runtime.roles.tierless import Tierless
from tests.roles.test_prefill import Engine
from tests.roles.virtual import in_virtual_time

PAGES = 1000


class Asked(Tierless):
    def match(self, chain: Pages[PageId], start: int) -> int:
        self.chain = chain
        return start


@in_virtual_time
async def test_others_have_their_turn_while_a_long_prompt_is_hashed() -> None:
    engine, tiers, turns = Engine(), Asked(), 0
    size = engine.spec.page_tokens
    prompt = tuple(range(PAGES * size + 3))
    sequence = Sequence(SequenceId("long"), prompt, Sampling(max_tokens=1), b"salt")
    async with asyncio.TaskGroup() as group:
        bringing = group.create_task(Preloading(engine, tiers).bring(sequence, len(prompt) - 1))
        while not bringing.done():
            turns += 1
            await asyncio.sleep(0)
    assert list(tiers.chain) == extend_chain([], b"salt", prompt, size, engine.spec.kv_fingerprint)
    assert turns >= PAGES // 64
