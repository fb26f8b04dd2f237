"""A gateway's role: which turns it takes, where it places them, and how clients, workers and time end them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from runtime.clock import LoopClock
from runtime.domain import messages as m
from runtime.domain.generation import Generation
from runtime.domain.messages import Acknowledge, Attach, AttemptFailed, CancelAttempt, Output, Start, View
from runtime.domain.routing import DECODE, PREFILL, Placement, Router
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.engine.simulated import SimulatedTokenizer, simulated_spec
from runtime.errors import BatonError, EngineFailed, Unavailable
from runtime.ids import BootId, GatewayId, Ids, TenantId, WorkerId
from runtime.ports import PrefillPeer
from runtime.roles.gateway import Deltas, GatewayRole, GatewaySettings, ServedModel
from runtime.roles.stream import StreamSettings
from tests.roles.virtual import in_virtual_time, now, settle
from tests.roles.wires import Worker

SPEC = simulated_spec("model", page_tokens=4, max_tokens=40)
ASK = Generation("model", (1, 2, 3), Sampling(max_tokens=9), TenantId("tenant"), deadline_s=60.0)
SETTINGS = GatewaySettings(
    StreamSettings(attach_s=1.0, silence_s=1e6), placement_s=10.0, second_chance_s=0.5, overdue_s=20.0, deltas=4
)


def member(name: str, role: str = DECODE, boot: str | None = None) -> m.Worker:
    fingerprints = SPEC.kv_fingerprint, SPEC.serving_fingerprint
    return m.Worker(WorkerId(name), BootId(boot or f"boot-{name}"), role, name, "model", *fingerprints, 40, 4, "cpu x1")


class _Mesh:
    """The directory and the peers of a gateway."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {name: Worker() for name in "abc"}
        self._views: asyncio.Queue[View] = asyncio.Queue()
        self._version = 0

    def show(self, *workers: m.Worker) -> None:
        self._version += 1
        self._views.put_nowait(View(1, self._version, workers))

    async def views(self) -> AsyncIterator[View]:
        while True:
            yield await self._views.get()

    async def register(self, worker: m.Worker) -> None:
        raise AssertionError(worker)

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        raise AssertionError(worker)

    def decode(self, address: str) -> Worker:
        return self.workers[address]

    def prefill(self, address: str) -> PrefillPeer:
        raise AssertionError(address)


@dataclass
class Held:
    role: GatewayRole
    mesh: _Mesh
    group: asyncio.TaskGroup
    serving: "asyncio.Task[None]"

    async def show(self, *workers: m.Worker) -> None:
        self.mesh.show(*workers)
        await settle()

    def last(self, worker: str) -> m.GatewayCommand:
        return self.mesh.workers[worker].commands[-1]

    def starts(self, worker: str) -> list[Start]:
        return [command for command in self.mesh.workers[worker].commands if isinstance(command, Start)]


@asynccontextmanager
async def gateway(*workers: m.Worker) -> AsyncIterator[Held]:
    mesh = _Mesh()
    role = GatewayRole(
        GatewayId("gateway"), (ServedModel(SPEC, SimulatedTokenizer(), 0),), Router(Placement.ROUND_ROBIN), mesh, mesh,
        Ids(random.Random(1)), LoopClock(), SETTINGS,
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        held = Held(role, mesh, group, group.create_task(role.run()))
        await settle()
        await held.show(*workers)
        yield held
        held.serving.cancel()


@asynccontextmanager
async def opened(held: Held, ask: Generation = ASK) -> AsyncIterator[Deltas]:
    async with held.role.open(ask) as deltas:
        await settle()
        yield deltas


def out(ref: Ref, index: int, count: int = 1, finish: FinishReason | None = None) -> Output:
    return Output(ref, index, tuple(Sampled(60 + index + n) for n in range(count)), "text", finish)


async def failure(deltas: Deltas) -> BatonError:
    with pytest.raises(BatonError) as failed:
        async for _ in deltas:
            pass
    return failed.value


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
