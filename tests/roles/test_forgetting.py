"""What workers do about an erased session: what runs of it ends, its pages go, and nothing of it begins any more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from runtime.domain.messages import PrefillCall, Start
from runtime.domain.sequence import Sampling
from runtime.domain.steps import Forgotten, Frame
from runtime.domain.tiers import Tier
from runtime.errors import StaleAttempt
from runtime.ids import PageId, SessionId
from runtime.ports import Loading
from runtime.roles.tierless import Tierless
from tests.roles import test_prefill as prefill
from tests.roles.one_decode_worker import PAGE, PROMPT, P, decode_worker, start, until
from tests.roles.virtual import in_virtual_time, settle

SESSION, OTHER = SessionId("sess-1"), SessionId("sess-2")
LONG = Sampling(max_tokens=100, temperature=0.0)


def of(session: SessionId, turn: str = "turn", **more: object) -> Start:
    return replace(start(turn=turn, sampling=LONG, **more), session=session)  # type: ignore[arg-type]


@in_virtual_time
async def test_what_runs_of_an_erased_session_ends_and_its_pages_go() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(of(SESSION))
        gateway.link.command(of(OTHER, "turn-other", prompt=tuple(range(50, 70))))
        await until(lambda: len(gateway.outputs) > 12)
        forgotten = await it.role.forget_session(SESSION)
        assert gateway.failures == [(1, "stale")]
        assert forgotten.dropped >= len(PROMPT) // PAGE
        assert forgotten.shared == 0
        assert it.role.running() == 1
        assert it.engine.load().pages.cached == 0, "and the other's are in use"


@in_virtual_time
async def test_what_waits_for_frames_of_an_erased_session_ends() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(of(SESSION, candidates=(P,)))
        await until(lambda: it.engine.load().awaiting == 1)
        forgetting = it.group.create_task(it.role.forget_session(SESSION))
        await until(forgetting.done)
        assert gateway.failures == [(1, "stale")]
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_nothing_of_an_erased_session_begins_any_more() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        assert await it.role.forget_session(SESSION) == Forgotten(SESSION, 0, 0)
        gateway.link.command(of(SESSION))
        gateway.link.command(of(OTHER, "turn-other"))
        await settle()
        assert gateway.failures == [(1, "stale")]
        assert it.role.running() == 1


@in_virtual_time
async def test_what_others_have_used_as_well_is_counted_and_stays() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        for session, turn in ((SESSION, "turn-1"), (OTHER, "turn-2")):
            gateway.link.command(replace(start(turn=turn), session=session))
            await until(lambda: it.engine.load().running == 0 and it.engine.load().pages.owned == 0)
            await asyncio.sleep(3.0)
        first, again = await it.role.forget_session(SESSION), await it.role.forget_session(SESSION)
        assert (first.dropped, again) == (0, Forgotten(SESSION, 0, 0))
        assert first.shared == (await it.role.forget_session(OTHER)).dropped > 0
        assert it.engine.load().pages.cached == 0


@in_virtual_time
async def test_a_prefill_of_an_erased_session_ends_and_no_other_begins() -> None:
    async with prefill.worker() as it:
        call = replace(prefill.CALL, session=SESSION)
        running = it.group.create_task(_refused(it, call))
        await asyncio.sleep(0.25)
        forgotten = await it.role.forget_session(SESSION)
        await running
        assert forgotten.dropped > 0
        await _refused(it, call)
        assert it.nothing_left()
        assert it.engine.load().pages.cached == 0


class SlowTiers(Tierless):
    """Has all that is asked for, a page every 0.2 seconds."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.closed = False

    def match(self, chain: Sequence[PageId], start: int) -> int:
        return len(chain)

    def load(self, chain: Sequence[PageId], start: int, salt: bytes) -> Loading:
        return self

    async def pages(self) -> AsyncIterator[tuple[Frame, Tier]]:
        for frame in self.frames:
            await asyncio.sleep(0.2)
            if self.closed:
                return
            yield frame, Tier.COLD

    def close(self) -> None:
        self.closed = True


@in_virtual_time
async def test_what_loads_from_tiers_for_a_prefill_of_an_erased_session_ends() -> None:
    async with prefill.worker() as it:
        await it.role.prefill(prefill.CALL)
        frames = it.transport.frames[:4]
    async with prefill.worker(SlowTiers(frames)) as it:
        running = it.group.create_task(_refused(it, replace(prefill.CALL, session=SESSION)))
        await asyncio.sleep(0.5)
        assert it.engine.load().pages.landing > 0
        await it.role.forget_session(SESSION)
        await asyncio.sleep(0.15)
        assert running.done(), "it waits for no page any more"
        await asyncio.sleep(2.0)
        assert it.engine.load().pages.cached == 0
        assert it.nothing_left()


async def _refused(it: prefill.Worker, call: PrefillCall) -> None:
    with pytest.raises((StaleAttempt, ExceptionGroup)):
        await it.role.prefill(call)
