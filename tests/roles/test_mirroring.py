"""Copies leave a decode worker at a rate, the best holders first; what befalls those costs copies, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from runtime.clock import LoopClock
from runtime.domain.messages import Holder, MirrorReport
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.errors import BatonError, ResourceExhausted, Unavailable
from runtime.ids import BootId, SessionId, WorkerId
from runtime.roles.mirroring import MirrorRole, MirrorSettings
from tests.roles import one_decode_worker as it
from tests.roles.virtual import in_virtual_time, now, settle

PAGE_BYTES = it.SPEC.page_bytes
P, Q, R = (Holder(WorkerId(name), BootId(f"boot-{name}"), name, "prefill") for name in "pqr")
HERE = Holder(WorkerId("d"), BootId("boot-d"), "d", "decode")
START = replace(it.start(prompt=tuple(range(9))), copies=1, mirrors=(P, Q))
SETTINGS = MirrorSettings(bytes_per_s=1e9, backlog_pages=100, patience_s=2.0, rest_s=5.0)


@dataclass
class Holding:
    """A holder that takes no more than it is asked to for one call, as slowly or badly as a test says."""

    seconds: float = 0.0
    error: BatonError | None = None
    has: dict[tuple[int, ...], int] = field(default_factory=dict)
    calls: list[tuple[float, KeepCall]] = field(default_factory=list)

    async def keep(self, call: KeepCall) -> Kept:
        self.calls.append((now(), call))
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        before = self.has.get(call.tokens[:4], 0)
        pages = min((len(call.tokens) - 1) // it.PAGE, before + call.most_pages)
        self.has[call.tokens[:4]] = pages
        return Kept(pages, max(pages - before, 0) * PAGE_BYTES)

    async def fetch(self, call: FetchCall) -> Fetched:
        raise AssertionError(call)

    @property
    def pages(self) -> int:
        return sum(self.has.values())


@dataclass
class World:
    role: MirrorRole
    holders: dict[str, Holding]

    def holder(self, holder: Holder) -> Holding:
        return self.holders[holder.worker]


@asynccontextmanager
async def mirror(settings: MirrorSettings = SETTINGS) -> AsyncIterator[World]:
    world = World.__new__(World)
    role = MirrorRole(HERE, it.SPEC, world, LoopClock(), settings)
    world.role, world.holders = role, {"p": Holding(), "q": Holding(), "r": Holding()}
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(role.run())
        await settle()
        yield world
        serving.cancel()


@in_virtual_time
async def test_pages_go_to_the_best_holder_as_they_fill_and_the_newest_token_has_none_yet() -> None:
    async with mirror() as world:
        world.role.grew(START, [100])
        await asyncio.sleep(0.01)
        assert world.holders["p"].pages == 2, "nine tokens of a prompt and one that has no KV yet"
        world.role.grew(START, [101, 102])
        await asyncio.sleep(0.01)
        assert len(world.holders["p"].calls) == 1, "no page was filled"
        world.role.grew(START, [103])
        await asyncio.sleep(0.01)
        assert (world.holders["p"].pages, world.holders["q"].calls) == (3, [])
        call = world.holders["p"].calls[-1][1]
        assert call.tokens == (*range(9), 100, 101, 102, 103)
        assert (call.tenant, call.source) == (it.TENANT, HERE)
        assert world.role.report() == MirrorReport(pages=3, bytes=3 * PAGE_BYTES)


@in_virtual_time
async def test_a_sequence_that_asks_for_none_has_no_copies_and_one_may_have_two() -> None:
    async with mirror() as world:
        world.role.grew(replace(START, copies=0), [1])
        await asyncio.sleep(0.01)
        assert not any(holder.calls for holder in world.holders.values())
        world.role.grew(replace(START, copies=2), [1])
        await asyncio.sleep(0.01)
        assert [world.holders[name].pages for name in "pqr"] == [2, 2, 0]


@in_virtual_time
async def test_no_more_leaves_than_the_rate_allows_for_all_copies_together() -> None:
    rate = 10 * PAGE_BYTES
    async with mirror(replace(SETTINGS, bytes_per_s=rate)) as world:
        start = replace(START, prompt=tuple(range(401)), copies=2)
        world.role.grew(start, [1])
        moved, began = 0, now()
        while not world.role.idle():
            await asyncio.sleep(0.05)
            moved = world.role.report().bytes
            batches = 2 * world.role.batch * PAGE_BYTES
            assert moved <= rate * (now() - began) + batches
        assert moved == 200 * PAGE_BYTES
        assert now() - began == pytest.approx(20, rel=0.02), "200 pages at 10 a second"


@in_virtual_time
async def test_beyond_its_bound_the_backlog_drops_what_has_waited_longest() -> None:
    async with mirror(replace(SETTINGS, backlog_pages=20)) as world:
        world.holders["p"].seconds = 1.0
        starts = [replace(START, ref=it.ref(turn=f"t{n}"), prompt=(n, *range(32)), mirrors=(P,)) for n in range(5)]
        for start in starts:
            world.role.grew(start, [1])
            await asyncio.sleep(0.01)
        report = world.role.report()
        assert report.dropped == 16, "the two that waited longest, but for the one under way"
        assert report.waiting <= 20 + 8
        await asyncio.sleep(10)
        assert {tokens[0] for tokens in world.holders["p"].has} == {0, 3, 4}
        world.role.grew(starts[1], [1, 1, 1, 1])
        await asyncio.sleep(2)
        assert 1 in {tokens[0] for tokens in world.holders["p"].has}, "it grew, and has its turn again, whole"


@pytest.mark.parametrize("slow", [True, False])
@in_virtual_time
async def test_when_a_holder_dies_or_hangs_the_next_one_takes_all_of_it(slow: bool) -> None:
    async with mirror() as world:
        world.role.grew(START, [1])
        await asyncio.sleep(0.01)
        if slow:
            world.holders["p"].seconds = 1e6
        else:
            world.holders["p"].error = Unavailable("gone")
        world.role.grew(START, [1] * 4)
        await asyncio.sleep(3)
        assert world.holders["q"].pages == 3
        assert world.role.report().failures == 1
        calls = len(world.holders["p"].calls)
        world.role.grew(START, [1] * 4)
        await asyncio.sleep(1)
        assert (len(world.holders["p"].calls), world.holders["q"].pages) == (calls, 4), "it is left alone for a while"
        await asyncio.sleep(5)
        world.holders["p"] = Holding()
        world.role.grew(START, [1] * 4)
        await asyncio.sleep(0.01)
        assert world.holders["p"].pages == 5, "the best is asked again after that"


@in_virtual_time
async def test_without_a_holder_that_is_fit_nothing_waits_and_nothing_is_kept() -> None:
    async with mirror() as world:
        for holder in world.holders.values():
            holder.error = Unavailable("gone")
        world.role.grew(START, [1])
        await asyncio.sleep(0.01)
        world.role.grew(START, [1] * 40)
        world.role.ended(START.ref)
        await asyncio.sleep(0.01)
        assert world.role.idle()
        assert (world.role.report().waiting, world.role._sequences) == (0, {})


@in_virtual_time
async def test_a_holder_without_room_is_asked_again_when_more_has_filled() -> None:
    async with mirror() as world:
        world.holders["p"].error = ResourceExhausted("full")
        world.role.grew(START, [1])
        await asyncio.sleep(0.01)
        assert (len(world.holders["p"].calls), world.role.report().dropped) == (1, 2)
        world.holders["p"].error = None
        world.role.grew(START, [1] * 4)
        await asyncio.sleep(0.01)
        assert (world.holders["p"].pages, world.holders["q"].calls) == (3, [])


@in_virtual_time
async def test_what_is_full_when_a_sequence_ends_is_copied_yet_and_then_forgotten() -> None:
    async with mirror() as world:
        world.holders["p"].seconds = 1.0
        world.role.grew(START, [1] * 4)
        world.role.ended(START.ref)
        assert world.role._sequences
        await asyncio.sleep(2)
        assert world.holders["p"].pages == 3
        assert not world.role._sequences


@in_virtual_time
async def test_nothing_more_of_an_erased_session_is_copied() -> None:
    async with mirror() as world:
        world.holders["p"].seconds = 1.0
        session = SessionId("sess")
        long = replace(START, prompt=tuple(range(200)), session=session, mirrors=(P,))
        other = replace(long, ref=it.ref(turn="other"), prompt=(7, *range(32)), session=None)
        for start in (long, other):
            world.role.grew(start, [1])
        await asyncio.sleep(0.01)
        world.role.forget(session)
        await asyncio.sleep(10)
        assert [call.session for _, call in world.holders["p"].calls] == [session, None]
        assert world.role.idle()
        assert [each.start.session for each in world.role._sequences.values()] == [None]


@in_virtual_time
async def test_a_holder_that_dies_while_a_session_is_erased_leaves_nothing_of_it_for_the_next() -> None:
    async with mirror() as world:
        world.holders["p"].seconds = 1.0
        world.role.grew(replace(START, session=SessionId("sess")), [1])
        await asyncio.sleep(0.01)
        world.role.forget(SessionId("sess"))
        world.holders["p"].error = Unavailable("gone")
        await asyncio.sleep(2)
        assert world.holders["q"].calls == [], "a call for no page would be refused, and the holder left alone for it"
        assert world.role.idle()
