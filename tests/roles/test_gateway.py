"""A gateway's role: which turns it takes, and how clients, time and its own stop end them."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from runtime.domain.messages import Acknowledge, CancelAttempt
from runtime.domain.routing import PREFILL
from runtime.domain.sequence import FinishReason, Sampling
from runtime.errors import BatonError
from tests.roles.one_gateway import ASK, SETTINGS, SPEC, failure, gateway, member, opened, out
from tests.roles.virtual import in_virtual_time, now, settle


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"model": "another"}, "not_found", "model"),
        ({"prompt": ()}, "invalid", "prompt"),
        ({"prompt": (1,) * 40}, "context", "prompt"),
        ({"prompt": (1,) * 39}, "context", "max_tokens"),
        ({"prompt": (1, SPEC.vocab)}, "invalid", "prompt"),
        ({"prompt": (1, -1)}, "invalid", "prompt"),
        ({"sampling": Sampling(max_tokens=0)}, "invalid", "max_tokens"),
        ({"sampling": Sampling(max_tokens=9, temperature=float("nan"))}, "invalid", "temperature"),
        ({"deadline_s": 0.0}, "deadline", "deadline_ms"),
    ],
)
@in_virtual_time
async def test_a_request_that_cannot_be_served_is_refused_by_field(
    wrong: dict[str, Any], code: str, field: str
) -> None:
    async with gateway(member("a")) as it:
        with pytest.raises(BatonError) as refused:
            async with it.role.open(replace(ASK, **wrong)):
                pass
        assert (refused.value.status.code, refused.value.field) == (code, field)
        assert it.role.in_flight() == 0


@in_virtual_time
async def test_a_request_must_fit_into_every_decode_worker_so_that_each_can_take_it_over() -> None:
    async with gateway(
        member("a"), replace(member("b"), max_tokens=11), replace(member("p", PREFILL), max_tokens=4)
    ) as it:
        assert it.role.served("model").spec.max_tokens == it.role.models()[0].spec.max_tokens == 11
        with pytest.raises(BatonError, match="more than the model's context of 11 tokens"):
            async with it.role.open(ASK):
                pass
        await it.show(member("a"))
        async with opened(it):
            assert len(it.starts("a")) == 1


@in_virtual_time
async def test_an_unknown_model_is_answered_with_those_that_are_served() -> None:
    async with gateway() as it:
        with pytest.raises(BatonError, match="model 'x' is not served here; served are: model"):
            it.role.served("x")


@in_virtual_time
async def test_a_turn_is_started_with_all_that_its_worker_needs_and_given_out_to_its_end() -> None:
    async with gateway(member("a"), member("p", PREFILL)) as it, opened(it) as deltas:
        (started,) = it.starts("a")
        assert (started.tenant, started.prompt, started.sampling) == (ASK.tenant, ASK.prompt, ASK.sampling)
        assert (started.ref.attempt, started.forced, started.remaining_ms) == (1, (), 60_000)
        assert [candidate.address for candidate in started.candidates] == ["p"]
        it.mesh.workers["a"].say(out(started.ref, 0, 2), out(started.ref, 2, finish=FinishReason.STOP))
        await settle()
        assert deltas.ready()
        assert [delta.index async for delta in deltas] == [0, 2]
        assert not deltas.ready()
        assert it.last("a") == Acknowledge(started.ref)
    assert it.role.in_flight() == 0


@in_virtual_time
async def test_a_client_that_leaves_early_cancels_its_turn() -> None:
    async with gateway(member("a")) as it:
        async with opened(it):
            (started,) = it.starts("a")
        await settle()
        assert it.last("a") == CancelAttempt(started.ref)
        assert it.role.in_flight() == 0


@in_virtual_time
async def test_a_slow_client_is_cancelled_at_the_bound_and_told_why() -> None:
    async with gateway(member("a")) as it, opened(it) as deltas:
        (started,) = it.starts("a")
        it.mesh.workers["a"].say(*(out(started.ref, index) for index in range(SETTINGS.deltas)))
        await settle()
        assert len(it.mesh.workers["a"].commands) == 1
        it.mesh.workers["a"].say(*(out(started.ref, SETTINGS.deltas + index) for index in range(9)))
        await settle()
        assert it.last("a") == CancelAttempt(started.ref)
        assert [(await anext(deltas)).index for _ in range(SETTINGS.deltas)] == [0, 1, 2, 3]
        slow = await failure(deltas)
        assert (slow.status.code, "left 4 outputs unread" in slow.message) == ("exhausted", True)


# Ends


@in_virtual_time
async def test_the_deadline_cancels_the_attempt_and_tells_the_client() -> None:
    async with gateway(member("a")) as it, opened(it, replace(ASK, deadline_s=7.0)) as deltas:
        assert (await failure(deltas)).status.code == "deadline"
        assert now() == 7.0
        await settle()
        assert it.last("a") == CancelAttempt(it.starts("a")[0].ref)


@in_virtual_time
async def test_a_turn_that_ended_leaves_no_timer_behind() -> None:
    async with gateway(member("a")) as it, opened(it):
        (live,) = it.role._live.values()
        assert list(live.timers) == ["DeadlinePassed"]
        it.mesh.workers["a"].say(out(it.starts("a")[0].ref, 0, finish=FinishReason.STOP))
        await settle()
        assert live.timers == {}


@in_virtual_time
async def test_a_gateway_that_stops_with_turns_in_flight_just_stops() -> None:
    async with gateway(member("a")) as it, opened(it):
        it.serving.cancel()
        await settle()
        assert it.serving.cancelled()
        assert it.mesh.workers["a"].open == 0


@in_virtual_time
async def test_a_gateway_is_ready_once_it_knows_a_decode_worker() -> None:
    async with gateway(member("p", PREFILL)) as it:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(it.role.wait_ready(), 5)
        await it.show(member("a"))
        await asyncio.wait_for(it.role.wait_ready(), 5)
        assert it.role.view().workers == (member("a"),)
