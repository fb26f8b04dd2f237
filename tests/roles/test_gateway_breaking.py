"""A gateway avoids workers that fail or crawl, tries them again with one turn, and does not retry without end."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from runtime.domain.breaking import BreakerPolicy, RetryPolicy
from runtime.domain.generation import Claim
from runtime.domain.messages import AttemptFailed
from runtime.domain.sequence import FinishReason
from runtime.errors import EngineFailed, ResourceExhausted, Unavailable
from runtime.ids import BootId, TurnId
from runtime.roles.gateway import GatewaySettings
from tests.roles.one_gateway import ASK, SETTINGS, Held, failure, gateway, member, opened, out
from tests.roles.virtual import in_virtual_time, settle

BREAKING = replace(
    SETTINGS, breakers=BreakerPolicy(failures=2, open_s=3.0, longest_s=60.0, slow_factor=4.0, slow_s=0.1, samples=2)
)
POOR: GatewaySettings = replace(SETTINGS, retries=RetryPolicy(per_turn=0.0, per_s=0.01, burst=1.0))


async def fail_at(held: Held, name: str, error: Exception) -> None:
    """Every attempt that is on the worker."""
    for start in held.starts(name):
        held.mesh.workers[name].say(AttemptFailed(start.ref, error))  # type: ignore[arg-type]
    await settle()


async def ask(held: Held, stack: AsyncExitStack, count: int) -> None:
    for _ in range(count):
        await stack.enter_async_context(opened(held))


@in_virtual_time
async def test_a_worker_that_fails_again_and_again_is_avoided_then_probed_by_one_turn() -> None:
    async with gateway(member("a"), member("b"), settings=BREAKING) as it, AsyncExitStack() as stack:
        await ask(it, stack, 4)
        assert len(it.starts("a")) == 2
        await fail_at(it, "a", EngineFailed("it burnt"))
        await ask(it, stack, 4)
        assert len(it.starts("a")) == 2, "it is avoided"
        await asyncio.sleep(3)
        await ask(it, stack, 4)
        probe = it.starts("a")[2:]
        assert len(probe) == 1, "one turn tries it"
        it.mesh.workers["a"].say(out(probe[0].ref, 0, finish=FinishReason.LENGTH))
        await settle()
        await ask(it, stack, 4)
        assert len(it.starts("a")) == 5, "it has its share again"


@in_virtual_time
async def test_a_sick_worker_is_better_than_none() -> None:
    async with gateway(member("a"), settings=BREAKING) as it, AsyncExitStack() as stack:
        await ask(it, stack, 2)
        await fail_at(it, "a", EngineFailed("it burnt"))
        await ask(it, stack, 1)
        assert len(it.starts("a")) == 3


@in_virtual_time
async def test_a_worker_that_is_full_is_not_a_sick_one() -> None:
    async with gateway(member("a"), member("b"), settings=BREAKING) as it, AsyncExitStack() as stack:
        await ask(it, stack, 4)
        await fail_at(it, "a", ResourceExhausted("it is full"))
        await ask(it, stack, 2)
        assert len(it.starts("a")) == 3


@in_virtual_time
async def test_a_worker_that_crawls_is_avoided() -> None:
    async with gateway(member("a"), member("b"), settings=BREAKING) as it, AsyncExitStack() as stack:
        await ask(it, stack, 2)
        (slow,), (fast,) = it.starts("a"), it.starts("b")
        for index in range(3):
            it.mesh.workers["b"].say(out(fast.ref, index))
            await asyncio.sleep(0.1)
        for index in range(3):
            it.mesh.workers["a"].say(out(slow.ref, index))
            await asyncio.sleep(2)
        await ask(it, stack, 4)
        assert len(it.starts("a")) == 1
        assert len(it.starts("b")) == 5


@in_virtual_time
async def test_a_new_generation_of_a_worker_is_not_blamed_for_the_one_before() -> None:
    async with gateway(member("a"), member("b"), settings=BREAKING) as it, AsyncExitStack() as stack:
        await ask(it, stack, 4)
        await fail_at(it, "a", EngineFailed("it burnt"))
        await it.show(member("a", boot="boot-again"), member("b"))
        await ask(it, stack, 2)
        assert len(it.starts("a")) == 3
        assert BootId("boot-a") not in it.role._breakers._known, "nothing is kept of it"


@in_virtual_time
async def test_without_a_budget_what_has_not_begun_fails_by_name() -> None:
    async with gateway(member("a"), member("b"), settings=POOR) as it, opened(it) as first, opened(it) as second:
        for _ in range(2):
            await fail_at(it, "a", Unavailable("it leaves"))
            await fail_at(it, "b", Unavailable("it leaves"))
        errors = [await failure(first), await failure(second)]
        assert {error.message for error in errors} == {"decode workers fail too often to try again now"}
        assert {error.retry_after_ms for error in errors} == {1000}
        assert len(it.starts("a")) + len(it.starts("b")) == 3, "two turns and one retry"


@in_virtual_time
async def test_that_a_worker_died_is_paid_by_nobody() -> None:
    async with gateway(member("a"), member("b"), member("c"), settings=POOR) as it, opened(it):
        tried = [name for name in "abc" if it.starts(name)]
        await fail_at(it, tried[0], Unavailable("it leaves"))
        tried += [name for name in "abc" if it.starts(name) and name not in tried]
        it.mesh.workers[tried[1]].refuses = Unavailable("connection refused")
        it.mesh.workers[tried[1]].hang_up()
        await settle()
        (third,) = set("abc") - set(tried)
        assert [start.ref.attempt for start in it.starts(third)] == [3]


@in_virtual_time
async def test_what_a_client_has_tokens_of_goes_on_without_any_budget() -> None:
    async with gateway(member("a"), member("b"), settings=POOR) as it, opened(it) as deltas:
        for attempt in range(3):
            name = next(name for name in "ab" if any(start.ref.attempt == attempt + 1 for start in it.starts(name)))
            ref = next(start.ref for start in it.starts(name) if start.ref.attempt == attempt + 1)
            it.mesh.workers[name].say(out(ref, attempt))
            await settle()
            it.mesh.workers[name].say(AttemptFailed(ref, Unavailable("it leaves")))
            await asyncio.sleep(1)
        assert [(await anext(deltas)).index for _ in range(3)] == [0, 1, 2]
        assert max(start.ref.attempt for name in "ab" for start in it.starts(name)) == 4


@in_virtual_time
async def test_a_turn_of_a_session_that_had_tokens_before_goes_on_without_any_budget() -> None:
    """Its gateway died, and then workers do: what its client has seen is not given up for that."""
    ask = replace(ASK, claim=Claim(TurnId("turn-1"), 2, (60,)))
    async with gateway(member("a"), member("b"), settings=POOR) as it, opened(it, ask):
        for name in ("a", "b", "a"):
            await fail_at(it, name, Unavailable("it leaves"))
            await asyncio.sleep(1)
        starts = [start for name in "ab" for start in it.starts(name)]
        assert max(start.ref.attempt for start in starts) >= 3
        assert {start.forced for start in starts} == {(60,)}
