"""Brings what the tiers have of a prompt into a prefill worker's prefix cache, before the prefill that uses it.

The pages land as they do at a decode worker: in a reservation of a sequence that never runs. Cancelling it leaves them
cached.
"""

import asyncio
from dataclasses import dataclass, replace

from runtime.domain.pages import extend_chain
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Cancel, DecodeAwaiting, Land, NoRoom, Reserved, SequenceFailed, StepOutput, Submit
from runtime.ids import PageId, SequenceId, SessionId
from runtime.ports import Engine, Loading, Tiers

# Page ids between two turns of the event loop: well below a millisecond.
_HASHED_AT_ONCE = 64


@dataclass(slots=True)
class _Bringing:
    session: SessionId | None
    reserved: asyncio.Future[int | None]
    loading: Loading | None = None
    ended: bool = False


class Preloading:
    def __init__(self, engine: Engine, tiers: Tiers) -> None:
        self._engine = engine
        self._tiers = tiers
        self._bringing: dict[SequenceId, _Bringing] = {}

    async def bring(self, sequence: Sequence, upto: int) -> None:
        """Land what the tiers have of the first `upto` tokens; without room, nothing. Cancelling it frees all."""
        spec, chain = self._engine.spec, await self._chain(sequence, upto)
        cached = self._engine.match(chain)
        stored = self._tiers.match(chain, cached)
        if stored <= cached:
            return
        # One token more than the pages hold, since the last one of a sequence is never loaded.
        tokens = sequence.tokens[: stored * spec.page_tokens + 1]
        loader = replace(sequence, id=SequenceId(f"{sequence.id}/tiers"), prompt=tokens)
        bringing = _Bringing(sequence.session, asyncio.get_running_loop().create_future())
        self._bringing[loader.id] = bringing
        self._engine.tell(Submit(loader, DecodeAwaiting()))
        try:
            local_tokens = await bringing.reserved
            if local_tokens is not None and not bringing.ended:
                bringing.loading = self._tiers.load(chain[:stored], local_tokens // spec.page_tokens, loader.salt)
                await self._land(loader.id, bringing.loading)
        finally:
            del self._bringing[loader.id]
            self._engine.tell(Cancel(loader.id))

    async def _chain(self, sequence: Sequence, upto: int) -> list[PageId]:
        """The ids of its pages, some of them at a time: hashing a long prompt takes longer than others can wait."""
        spec, tokens, chain = self._engine.spec, sequence.tokens[:upto], list[PageId]()
        while len(chain) < upto // spec.page_tokens:
            extend_chain(chain, sequence.salt, tokens, spec.page_tokens, spec.kv_fingerprint, _HASHED_AT_ONCE)
            await asyncio.sleep(0)
        return chain

    async def _land(self, loader: SequenceId, loading: Loading) -> None:
        try:
            async for frame, _ in loading.pages():
                self._engine.tell(Land(loader, frame))
        finally:
            loading.close()

    def end(self, session: SessionId) -> None:
        """Bring nothing more for this session: the engine is told before this returns."""
        for loader, bringing in self._bringing.items():
            if bringing.session != session:
                continue
            bringing.ended = True
            self._engine.tell(Cancel(loader))
            if bringing.loading is not None:
                bringing.loading.close()
            if not bringing.reserved.done():
                bringing.reserved.set_result(None)

    def on_step(self, step: StepOutput) -> None:
        """Learn whether there was room."""
        for event in step.events:
            bringing = self._bringing.get(event.sequence)
            if bringing is None or bringing.reserved.done():
                continue
            match event:
                case Reserved(local_tokens=local_tokens):
                    bringing.reserved.set_result(local_tokens)
                case NoRoom() | SequenceFailed():
                    bringing.reserved.set_result(None)
