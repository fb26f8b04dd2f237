"""A gateway's role: where it places turns, when it places them anew, and its streams to the workers."""

import asyncio

from runtime.domain.messages import Attach, AttemptFailed, CancelAttempt
from runtime.domain.routing import PREFILL
from runtime.domain.sequence import FinishReason
from runtime.errors import EngineFailed, Unavailable
from tests.roles.one_gateway import SETTINGS, failure, gateway, member, opened, out
from tests.roles.virtual import in_virtual_time, now, settle

# Where turns go


@in_virtual_time
async def test_a_turn_without_a_worker_waits_and_the_view_that_brings_one_places_it() -> None:
    async with gateway() as it, opened(it) as deltas:
        await asyncio.sleep(5)
        await it.show(member("p", PREFILL))
        assert not deltas.ready()
        await it.show(member("p", PREFILL), member("a"))
        assert len(it.starts("a")) == 1


@in_virtual_time
async def test_a_turn_that_nobody_serves_in_time_fails_and_can_be_tried_again() -> None:
    async with gateway() as it, opened(it) as deltas:
        error = await failure(deltas)
        assert (now(), error.status.code, error.retry_after_ms) == (SETTINGS.placement_s, "unavailable", 1000)
        await it.show(member("a"))
        assert it.starts("a") == [], "a turn that failed is not placed"


@in_virtual_time
async def test_each_wait_for_a_worker_has_its_whole_time() -> None:
    async with gateway() as it, opened(it) as deltas:
        await asyncio.sleep(8)
        await it.show(member("a"))
        await it.show()
        it.mesh.workers["a"].say(AttemptFailed(it.starts("a")[0].ref, Unavailable("it leaves")))
        await asyncio.sleep(5)
        assert not deltas.ready(), "the first wait would have ended here"
        await failure(deltas)
        assert now() == 8 + SETTINGS.placement_s


@in_virtual_time
async def test_a_failover_forces_what_was_given_out_and_avoids_the_worker() -> None:
    async with gateway(member("a"), member("b")) as it, opened(it) as deltas:
        first = next(name for name in "ab" if it.starts(name))
        other = "b" if first == "a" else "a"
        ref = it.starts(first)[0].ref
        it.mesh.workers[first].say(out(ref, 0, 2))
        await asyncio.sleep(1)
        it.mesh.workers[first].say(AttemptFailed(ref, EngineFailed("it burnt")))
        await settle()
        (again,) = it.starts(other)
        assert (again.ref.attempt, again.forced, again.remaining_ms) == (2, (60, 61), 59_000)
        it.mesh.workers[first].say(out(ref, 2))
        it.mesh.workers[other].say(out(again.ref, 2, finish=FinishReason.LENGTH))
        await settle()
        assert [(delta.index, delta.attempt) async for delta in deltas] == [(0, 1), (2, 2)]


@in_virtual_time
async def test_the_only_worker_gets_a_second_chance_after_a_moment() -> None:
    async with gateway(member("a")) as it, opened(it):
        it.mesh.workers["a"].say(AttemptFailed(it.starts("a")[0].ref, Unavailable("not now")))
        await asyncio.sleep(SETTINGS.second_chance_s - 0.1)
        assert len(it.starts("a")) == 1
        await asyncio.sleep(0.2)
        assert [start.ref.attempt for start in it.starts("a")] == [1, 2]


@in_virtual_time
async def test_a_second_chance_that_was_not_needed_is_not_given_to_a_later_wait() -> None:
    async with gateway(member("a")) as it, opened(it):
        it.mesh.workers["a"].say(AttemptFailed(it.starts("a")[0].ref, Unavailable("not now")))
        await asyncio.sleep(0.3)
        await it.show(member("a"), member("b"))
        await it.show(member("a"))
        it.mesh.workers["b"].say(AttemptFailed(it.starts("b")[0].ref, Unavailable("not now")))
        await asyncio.sleep(0.4)
        assert len(it.starts("a")) == 1
        await asyncio.sleep(0.2)
        assert len(it.starts("a")) == 2


@in_virtual_time
async def test_a_turn_that_found_a_worker_is_not_placed_again_by_its_second_chance() -> None:
    async with gateway(member("a")) as it, opened(it) as deltas:
        it.mesh.workers["a"].say(AttemptFailed(it.starts("a")[0].ref, Unavailable("not now")))
        await asyncio.sleep(0.3)
        await it.show(member("a"), member("b"))
        await asyncio.sleep(2 * SETTINGS.second_chance_s)
        assert (len(it.starts("a")), len(it.starts("b"))) == (1, 1)
        it.mesh.workers["b"].say(out(it.starts("b")[0].ref, 0, finish=FinishReason.STOP))
        assert [delta.attempt async for delta in deltas] == [2]


@in_virtual_time
async def test_the_next_generation_of_a_suspect_is_no_suspect() -> None:
    async with gateway(member("a")) as it, opened(it):
        it.mesh.workers["a"].say(AttemptFailed(it.starts("a")[0].ref, EngineFailed("it burnt")))
        await it.show(member("a", boot="another"))
        assert [start.ref.attempt for start in it.starts("a")] == [1, 2]


@in_virtual_time
async def test_an_attempt_that_brings_nothing_is_tried_elsewhere() -> None:
    async with gateway(member("a"), member("b")) as it, opened(it):
        first = next(name for name in "ab" if it.starts(name))
        other = "b" if first == "a" else "a"
        ref = it.starts(first)[0].ref
        await asyncio.sleep(SETTINGS.overdue_s - 1)
        it.mesh.workers[first].say(out(ref, 0))
        await asyncio.sleep(SETTINGS.overdue_s - 1)
        assert it.starts(other) == []
        await asyncio.sleep(SETTINGS.overdue_s / 2)
        assert it.last(first) == CancelAttempt(ref)
        assert [start.forced for start in it.starts(other)] == [(60,)]


# Streams


@in_virtual_time
async def test_a_broken_stream_is_attached_again_from_what_was_given_out() -> None:
    async with gateway(member("a")) as it, opened(it) as deltas:
        ref = it.starts("a")[0].ref
        it.mesh.workers["a"].say(out(ref, 0, 3))
        await settle()
        it.mesh.workers["a"].hang_up(Unavailable("reset"))
        await settle()
        assert it.last("a") == Attach(ref, 3)
        it.mesh.workers["a"].say(out(ref, 1, 3, FinishReason.LENGTH))
        await settle()
        assert [(delta.index, len(delta.tokens)) async for delta in deltas] == [(0, 3), (3, 1)]


@in_virtual_time
async def test_a_worker_that_died_is_replaced_and_a_turn_that_never_reached_two_of_them_is_no_poison() -> None:
    async with gateway(member("a"), member("b"), member("c")) as it:
        for name in "ab":
            it.mesh.workers[name].refuses = Unavailable("connection refused")
        async with opened(it), opened(it), opened(it):
            await settle()
            assert len(it.starts("c")) == 3
            assert it.starts("a") == it.starts("b") == []


@in_virtual_time
async def test_all_turns_of_a_worker_share_one_stream() -> None:
    async with gateway(member("a")) as it, opened(it), opened(it), opened(it):
        assert len({start.ref.turn for start in it.starts("a")}) == 3
        assert it.mesh.workers["a"].connections == 1


@in_virtual_time
async def test_the_stream_to_a_worker_that_left_is_kept_as_long_as_a_turn_needs_it() -> None:
    async with gateway(member("a")) as it:
        async with opened(it) as deltas:
            await it.show(member("b"))
            assert it.mesh.workers["a"].open == 1
            it.mesh.workers["a"].say(out(it.starts("a")[0].ref, 0, finish=FinishReason.STOP))
            assert len([delta async for delta in deltas]) == 1
        await it.show(member("b"))
        assert it.mesh.workers["a"].open == 0


@in_virtual_time
async def test_output_for_a_turn_that_is_gone_harms_nobody() -> None:
    async with gateway(member("a")) as it:
        async with opened(it):
            ref = it.starts("a")[0].ref
        it.mesh.workers["a"].say(out(ref, 0), AttemptFailed(ref, EngineFailed("late")))
        async with opened(it):
            assert len(it.starts("a")) == 2
