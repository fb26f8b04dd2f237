"""A decode worker's role: streams that break, gateways that do not read, attempts that replace each other, and time."""

import asyncio

import pytest

from runtime.domain.messages import Acknowledge, Attach, AttemptFailed, CancelAttempt, Output
from runtime.domain.sequence import FinishReason, Sampling
from runtime.engine.simulated import continuation
from runtime.ids import GatewayId, TenantId
from tests.roles.one_decode_worker import (
    GREEDY,
    PROMPT,
    SETTINGS,
    STEP_S,
    P,
    decode_worker,
    ref,
    start,
    until,
)
from tests.roles.virtual import in_virtual_time, settle

EXPECTED = continuation(PROMPT, GREEDY)
LONG = Sampling(max_tokens=100, temperature=0.0)


@in_virtual_time
async def test_a_stream_is_greeted_at_once_and_never_silent_for_longer_than_the_heartbeat() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        await settle()
        assert gateway.batches == 1
        await asyncio.sleep(5 * SETTINGS.heartbeat_s + 0.1)
        assert (gateway.batches, gateway.outputs) == (6, [])


@in_virtual_time
async def test_a_started_attempt_brings_its_tokens_and_is_forgotten_once_its_end_is_acknowledged() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start())
        await until(lambda: len(gateway.tokens) == 8)
        assert gateway.tokens == EXPECTED
        first, *others = gateway.outputs
        assert isinstance(first, Output)
        assert first.handoff is not None
        assert first.handoff.prompt_tokens == 18
        assert first.handoff.wait_ms == pytest.approx(1000 * STEP_S)
        assert [output.handoff for output in others if isinstance(output, Output)] == [None] * 7
        assert it.held() == (1, 0, 0)
        gateway.link.command(Acknowledge(ref()))
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_the_tenant_of_an_attempt_must_be_known() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(tenant=TenantId("stranger")))
        await settle()
        assert gateway.failures == [(1, "invalid")]
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_a_newer_attempt_of_a_turn_replaces_the_older() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(attempt=1, sampling=LONG))
        await until(lambda: len(gateway.tokens) == 3)
        gateway.link.command(start(attempt=3))
        await settle()
        assert gateway.failures == [(1, "stale")]
        gateway.outputs.clear()
        await until(lambda: len(gateway.tokens) == 8)
        assert {output.ref for output in gateway.outputs} == {ref(3)}
        assert it.held() == (1, 0, 0)


@pytest.mark.parametrize("ended", [False, True])
@in_virtual_time
async def test_an_attempt_that_is_not_newer_is_refused_even_when_the_newer_one_ended(ended: bool) -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(attempt=2))
        if ended:
            gateway.link.command(CancelAttempt(ref(2)))
        gateway.link.command(start(attempt=2))
        gateway.link.command(start(attempt=1))
        await settle()
        assert [failure for failure in gateway.failures if failure[1] == "stale"] == [(2, "stale"), (1, "stale")]
        assert it.role.running() == (0 if ended else 1)


@in_virtual_time
async def test_attempts_of_other_turns_do_not_replace_each_other() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        for turn in ("one", "other"):
            gateway.link.command(start(turn=turn))
        assert it.role.running() == 2


@in_virtual_time
async def test_a_cancelled_attempt_leaves_nothing() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(sampling=LONG))
        await until(lambda: len(gateway.tokens) == 3)
        gateway.link.command(CancelAttempt(ref()))
        await asyncio.sleep(2 * STEP_S)
        assert it.held() == (0, 0, 0)
        assert gateway.failures == [(1, "cancelled")]


@in_virtual_time
async def test_the_deadline_ends_an_attempt_here_too() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(sampling=LONG, remaining_ms=750))
        await asyncio.sleep(1)
        assert gateway.failures == [(1, "deadline")]
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_commands_for_an_attempt_that_is_unknown_here_are_answered_only_where_somebody_waits() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        for command in (Acknowledge(ref()), CancelAttempt(ref()), Attach(ref(), 0)):
            gateway.link.command(command)
        await settle()
        assert gateway.failures == [(1, "not_found")]


# Streams that break


@in_virtual_time
async def test_a_request_goes_on_while_its_gateway_is_away_and_the_next_stream_brings_the_rest() -> None:
    async with decode_worker() as it:
        async with it.gateway() as gateway:
            gateway.link.command(start())
            await until(lambda: len(gateway.tokens) == 3)
        await asyncio.sleep(3 * STEP_S)
        async with it.gateway() as other:
            other.link.command(Attach(ref(), have=3))
            other.outputs.extend(gateway.outputs)
            await until(lambda: len(other.tokens) == 8)
            assert other.tokens == EXPECTED


@in_virtual_time
async def test_what_was_in_the_broken_stream_is_sent_again() -> None:
    async with decode_worker() as it:
        async with it.gateway(reads=False) as gateway:
            gateway.link.command(start())
            await asyncio.sleep(10 * STEP_S)
        async with it.gateway() as other:
            other.link.command(Attach(ref(), have=0))
            await settle()
            assert other.tokens == EXPECTED
            last = other.outputs[-1]
            assert isinstance(last, Output)
            assert last.finish is FinishReason.LENGTH


@in_virtual_time
async def test_an_old_stream_that_ends_after_the_gateway_attached_anew_takes_nothing_away() -> None:
    async with decode_worker() as it, it.gateway() as new:
        async with it.gateway() as old:
            old.link.command(start())
            await until(lambda: len(old.tokens) == 3)
            new.link.command(Attach(ref(), have=0))
        await until(lambda: len(new.tokens) == 8)
        assert new.tokens == EXPECTED
        assert len(old.tokens) == 3


@in_virtual_time
async def test_a_gateway_that_stays_away_for_the_grace_ends_its_requests() -> None:
    async with decode_worker() as it:
        async with it.gateway() as gateway:
            gateway.link.command(start(sampling=Sampling(max_tokens=5)))
            await until(lambda: len(gateway.tokens) == 2)
        await asyncio.sleep(SETTINGS.grace_s - 0.1)
        assert it.role.running() == 1
        await asyncio.sleep(3 * STEP_S + 0.2)
        assert it.held() == (0, 0, 0), "the grace counts from the last token"
        async with it.gateway() as late:
            late.link.command(Attach(ref(), have=0))
            await settle()
            assert late.failures == [(1, "not_found")]


@in_virtual_time
async def test_a_request_without_its_gateway_ends_at_the_bound_of_what_is_kept() -> None:
    async with decode_worker() as it:
        async with it.gateway() as gateway:
            gateway.link.command(start(sampling=LONG))
            await until(lambda: len(gateway.tokens) == 2)
        await asyncio.sleep((SETTINGS.policy.detached_tokens + 2) * STEP_S)
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_a_gateway_lost_while_pages_land_or_room_is_awaited_ends_its_requests_at_once() -> None:
    async with decode_worker(pages=8) as it:
        async with it.gateway() as gateway:
            for turn in ("one", "other"):
                gateway.link.command(start(turn=turn, prompt=(ord(turn[0]),) * 20, candidates=(P,)))
            await until(lambda: bool(it.prefill_workers["p"].calls))
            assert it.role.running() == 2
        await asyncio.sleep(2 * STEP_S)
        assert it.held() == (0, 0, 0)
        assert len(it.transport.fenced) == it.prefill_workers["p"].cancelled == 1


@in_virtual_time
async def test_an_end_that_is_never_acknowledged_is_forgotten_after_the_grace() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start())
        await until(lambda: len(gateway.tokens) == 8)
        await asyncio.sleep(SETTINGS.grace_s + 0.1)
        assert it.role.running() == 0


@in_virtual_time
async def test_a_gateway_that_does_not_read_is_broken_at_the_bound_and_its_requests_can_be_taken_over() -> None:
    async with decode_worker() as it, it.gateway(reads=False) as stuck:
        stuck.link.command(start(sampling=LONG))
        await asyncio.sleep((SETTINGS.batches + 2) * STEP_S)
        assert [batch async for batch in stuck.link.batches()] == [], "what it did not read is dropped"
        stuck.link.command(start(turn="late"))
        assert it.role.running() == 1, "a broken stream starts nothing"
        async with it.gateway() as other:
            other.link.command(Attach(ref(), have=0))
            await settle()
            assert other.tokens == continuation(PROMPT, LONG)[: len(other.tokens)] != []


@in_virtual_time
async def test_one_gateway_that_does_not_read_harms_no_other() -> None:
    async with decode_worker() as it, it.gateway(reads=False) as stuck, it.gateway() as other:
        stuck.link.command(start(turn="stuck", sampling=LONG))
        other.link.command(start(turn="other", sampling=LONG))
        await until(lambda: len(other.tokens) == 100)
        assert other.tokens == continuation(PROMPT, LONG)


# The end of the worker


@in_virtual_time
async def test_an_engine_that_dies_fails_every_attempt_and_the_worker() -> None:
    async with decode_worker(serves=False) as it:
        async with it.role.attach(GatewayId("gateway")) as link:
            for turn in ("one", "other"):
                link.command(start(turn=turn))
            it.engine.dies = True
            with pytest.raises(ExceptionGroup) as died:
                await it.role.run()
            assert [str(error) for error in died.value.exceptions] == ["it burnt"]
            batches = link.batches()
            greeting, last = await anext(batches), await anext(batches)
        assert greeting.outputs == ()
        assert [(output.ref.turn, type(output)) for output in last.outputs] == [
            ("one", AttemptFailed),
            ("other", AttemptFailed),
        ]


@in_virtual_time
async def test_a_worker_that_ends_leaves_no_timer_behind() -> None:
    async with decode_worker() as it:
        async with it.gateway() as gateway:
            gateway.link.command(start(sampling=LONG))
            await until(lambda: len(gateway.tokens) == 2)
            it.serving.cancel()
            await settle()
        told = len(it.engine.told)
        await asyncio.sleep(100)
        assert len(it.engine.told) == told
