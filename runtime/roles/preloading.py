"""Brings what the tiers have of a prompt into a prefill worker's prefix cache, before the prefill that uses it.

The pages land as they do at a decode worker: in a reservation of a sequence that never runs. Cancelling it leaves them
cached.
"""

import asyncio
from dataclasses import replace

from runtime.domain.pages import extend_chain
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Cancel, DecodeAwaiting, Land, NoRoom, Reserved, SequenceFailed, StepOutput, Submit
from runtime.ids import PageId, SequenceId
from runtime.ports import Engine, Tiers


class Preloading:
    def __init__(self, engine: Engine, tiers: Tiers) -> None:
        self._engine = engine
        self._tiers = tiers
        self._reserving: dict[SequenceId, asyncio.Future[int | None]] = {}

    async def bring(self, sequence: Sequence, upto: int) -> None:
        """Land what the tiers have of the first `upto` tokens; without room, nothing. Cancelling it frees all."""
        spec = self._engine.spec
        chain: list[PageId] = []
        extend_chain(chain, sequence.salt, sequence.tokens[:upto], spec.page_tokens, spec.kv_fingerprint)
        cached = self._engine.match(chain)
        stored = self._tiers.match(chain, cached)
        if stored <= cached:
            return
        # One token more than the pages hold, since the last one of a sequence is never loaded.
        tokens = sequence.tokens[: stored * spec.page_tokens + 1]
        loader = replace(sequence, id=SequenceId(f"{sequence.id}/tiers"), prompt=tokens)
        reserved: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._reserving[loader.id] = reserved
        self._engine.tell(Submit(loader, DecodeAwaiting()))
        try:
            local_tokens = await reserved
            if local_tokens is not None:
                await self._land(loader, chain[:stored], local_tokens // spec.page_tokens)
        finally:
            del self._reserving[loader.id]
            self._engine.tell(Cancel(loader.id))

    async def _land(self, loader: Sequence, chain: list[PageId], first: int) -> None:
        loading = self._tiers.load(chain, first, loader.salt)
        try:
            async for frame, _ in loading.pages():
                self._engine.tell(Land(loader.id, frame))
        finally:
            loading.close()

    def on_step(self, step: StepOutput) -> None:
        """Learn whether there was room."""
        for event in step.events:
            reserved = self._reserving.get(event.sequence)
            if reserved is None or reserved.done():
                continue
            match event:
                case Reserved(local_tokens=local_tokens):
                    reserved.set_result(local_tokens)
                case NoRoom() | SequenceFailed():
                    reserved.set_result(None)
