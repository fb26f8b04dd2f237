"""What a decode worker keeps for a session that is away: promised with its last output, ended in time, and counted."""

import asyncio
from dataclasses import replace

from runtime.domain.messages import CancelAttempt, Output, Paused, Start
from runtime.domain.retention import Pause, Promise, Refusal, Retention
from runtime.ids import SessionId, TurnId
from tests.roles.one_decode_worker import PAGE, PROMPT, SPEC, Gateway, Worker, decode_worker, ref, start, until
from tests.roles.virtual import in_virtual_time, settle

SESSION = SessionId("sess-1")
ASKED = Retention(after_tools_ms=4000, after_answer_ms=20_000)
# Of the context the last token has no KV.
PAGES = (len(PROMPT) + 8 - 1) // PAGE
SECOND = PAGES * SPEC.page_bytes


def asking(turn: str = "turn", retention: Retention = ASKED, session: SessionId = SESSION) -> Start:
    return replace(start(turn=turn), session=session, retention=retention)


async def ended(gateway: Gateway) -> Output:
    """The last output of the turn that runs, as it comes."""
    seen = len(gateway.outputs)
    await until(lambda: any(isinstance(each, Output) and each.finish for each in gateway.outputs[seen:]))
    last = gateway.outputs[-1]
    assert isinstance(last, Output)
    return last


def granted(it: Worker) -> int:
    """Pages under grants."""
    return len(it.engine.core.grants)


@in_virtual_time
async def test_what_is_promised_is_kept_as_long_as_the_pause_that_came_and_then_told() -> None:
    for pause, seconds in ((Pause.TOOLS, 4), (Pause.ANSWER, 20)):
        async with decode_worker() as it, it.gateway() as gateway:
            gateway.link.command(asking())
            assert (await ended(gateway)).promise == Promise(PAGES * PAGE, ASKED)
            gateway.link.command(Paused(ref(), SESSION, pause, ASKED.after(pause)))
            await asyncio.sleep(seconds - 0.1)
            assert granted(it) == PAGES
            await asyncio.sleep(0.2)
            assert granted(it) == 0
            await asyncio.sleep(1)
            (told,) = gateway.kept
            assert (told.session, told.turn) == (SESSION, TurnId("turn"))
            assert seconds * SECOND <= told.byte_seconds <= (seconds + 0.5) * SECOND


@in_virtual_time
async def test_who_never_hears_which_pause_it_is_keeps_no_longer_than_the_longest() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking())
        await ended(gateway)
        await asyncio.sleep(19.5)
        assert granted(it) == PAGES
        await asyncio.sleep(1)
        assert granted(it) == 0


@in_virtual_time
async def test_a_session_that_is_back_pays_for_its_pause_and_no_more() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking())
        await ended(gateway)
        gateway.link.command(Paused(ref(), SESSION, Pause.ANSWER, 20_000))
        await asyncio.sleep(3)
        said = tuple(gateway.tokens)
        again = asking("turn-2", Retention())
        gateway.link.command(replace(again, prompt=(*PROMPT, *said, 1, 2, 3)))
        assert (await ended(gateway)).promise is None
        await until(lambda: bool(gateway.kept))
        (told,) = gateway.kept
        assert 3 * SECOND <= told.byte_seconds <= 4 * SECOND
        await asyncio.sleep(30)
        assert gateway.kept == [told]


@in_virtual_time
async def test_a_pause_that_was_not_asked_for_keeps_nothing() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking(retention=Retention(after_tools_ms=4000)))
        await ended(gateway)
        gateway.link.command(Paused(ref(), SESSION, Pause.ANSWER, 0))
        await until(lambda: granted(it) == 0)


@in_virtual_time
async def test_more_than_half_of_the_pool_is_refused() -> None:
    async with decode_worker(pages=2 * PAGES + 1) as it, it.gateway() as gateway:
        gateway.link.command(asking())
        assert (await ended(gateway)).promise == Promise(PAGES * PAGE, ASKED)
        other = asking("turn-2", session=SessionId("sess-2"))
        gateway.link.command(replace(other, prompt=tuple(range(50, 68))))
        assert (await ended(gateway)).promise == Promise(refusal=Refusal.TENANT_QUOTA)
        assert granted(it) == PAGES


@in_virtual_time
async def test_what_a_worker_keeps_when_no_gateway_listens_is_told_to_the_next() -> None:
    async with decode_worker() as it:
        async with it.gateway() as gateway:
            gateway.link.command(asking())
            await ended(gateway)
            gateway.link.command(Paused(ref(), SESSION, Pause.TOOLS, 4000))
            await settle()
        await asyncio.sleep(6)
        assert granted(it) == 0
        async with it.gateway() as other:
            await until(lambda: bool(other.kept))
            assert [(told.session, told.turn) for told in other.kept] == [(SESSION, TurnId("turn"))]


@in_virtual_time
async def test_an_erased_session_keeps_nothing_any_more() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking())
        await ended(gateway)
        forgotten = await it.role.forget_session(SESSION)
        assert (forgotten.dropped, granted(it)) == (PAGES, 0)
        await until(lambda: bool(gateway.kept))


@in_virtual_time
async def test_nothing_is_kept_for_who_left_before_the_end() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking())
        await until(lambda: len(gateway.tokens) == 7)
        # The last step is under way; what it brings finds nobody.
        gateway.link.command(CancelAttempt(ref()))
        await until(lambda: it.held() == (0, 0, 0))
        await asyncio.sleep(1)
        assert granted(it) == 0


@in_virtual_time
async def test_a_worker_that_leaves_promises_nothing_and_tells_what_keeping_came_to() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(asking())
        assert (await ended(gateway)).promise == Promise(PAGES * PAGE, ASKED)
        other = asking("turn-2", session=SessionId("sess-2"))
        gateway.link.command(replace(other, prompt=tuple(range(50, 68))))
        await asyncio.sleep(0.15)
        it.role.retaining.leave()
        assert (await ended(gateway)).promise == Promise(refusal=Refusal.NOT_OFFERED), "it had begun before"
        third = asking("turn-3", session=SessionId("sess-3"))
        gateway.link.command(replace(third, prompt=tuple(range(70, 88))))
        assert (await ended(gateway)).promise == Promise(refusal=Refusal.NOT_OFFERED)
        await until(lambda: granted(it) == 0)
        assert [told.session for told in gateway.kept] == [SESSION]
