"""A worker that holds pages for another, over a wire in the hands of the test: whatever happens, its pages add up."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.landing import FrameCorrupt, LandingEvent
from runtime.domain.messages import Holder, Ticket, TicketPage
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.domain.pages import extend_chain
from runtime.domain.retention import Quota
from runtime.domain.sequence import Sequence
from runtime.domain.steps import Copied, Copy, DecodeLocal, Forgotten, Frame, StepOutput, Submit
from runtime.engine.simulated import SimulatedEngine, StepProfile
from runtime.errors import (
    BatonError,
    DeadlineExceeded,
    Incompatible,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StaleAttempt,
    Unavailable,
)
from runtime.ids import BootId, Ids, PageId, SequenceId, SessionId, TenantId, TransferId, WorkerId
from runtime.roles.holding import HoldingRole
from runtime.roles.tapping import Tapped
from tests.roles import one_decode_worker as it
from tests.roles.virtual import in_virtual_time, settle
from tests.roles.wires import Pushing, Receiving

SOURCE = Holder(WorkerId("d"), BootId("boot-d"), "d", "decode")
HERE = Holder(WorkerId("p"), BootId("boot-p"), "p", "prefill")
TOKENS = tuple(range(21))
CHAIN = extend_chain([], it.SALT, TOKENS, it.PAGE, it.SPEC.kv_fingerprint)
SESSION = SessionId("sess")
CALL = KeepCall(it.TENANT, TOKENS, SOURCE, 16, 5000, SESSION)
TICKET = Ticket(
    TransferId("transfer"), 1, BootId("boot"), "by hand", "there", it.SPEC.kv_fingerprint, "float32",
    tuple(TicketPage(index, CHAIN[index], it.PAGE) for index in range(5)), 9000,
)  # fmt: skip


@dataclass
class Source:
    """The worker that has the pages: what it does with a ticket is up to the test."""

    push: "Callable[[Ticket], None]" = lambda _ticket: None
    error: BatonError | None = None
    hangs: bool = False
    calls: list[FetchCall] = field(default_factory=list)

    async def keep(self, call: KeepCall) -> Kept:
        raise AssertionError(call)

    async def fetch(self, call: FetchCall) -> Fetched:
        self.calls.append(call)
        self.push(call.ticket)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return Fetched(0, 0)

    def holder(self, holder: Holder) -> "Source":
        assert holder == SOURCE
        return self


@dataclass
class World:
    role: HoldingRole
    engine: SimulatedEngine
    receiving: Receiving
    source: Source
    steps: list[StepOutput]
    group: asyncio.TaskGroup

    def held(self) -> tuple[int, int, int, int]:
        """Pages that land, are owned and are cached, and sequences."""
        load = self.engine.load()
        return load.pages.landing, load.pages.owned, load.pages.cached, load.awaiting + load.waiting + load.running


@asynccontextmanager
async def holding(pages: int = 64, transport: Pushing | None = None) -> AsyncIterator[World]:
    engine = SimulatedEngine(
        it.SPEC, pages, Limits(step_tokens=32, max_running=4), StepProfile(base_ms=10), LoopClock()
    )
    tapped, receiving, source, steps = Tapped(engine), Receiving(), Source(), list[StepOutput]()

    async def forget(session: SessionId) -> Forgotten:
        return Forgotten(session, 0, 0)

    role = HoldingRole(
        HERE, tapped, transport or receiving, source, {it.TENANT: it.SALT}, Ids(random.Random(1)), forget
    )

    async def step() -> None:
        async for each in tapped.steps():
            steps.append(each)

    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(role.run()), group.create_task(step())]
        await settle()
        yield World(role, engine, receiving, source, steps, group)
        engine.check()
        for task in serving:
            task.cancel()


async def pushed(world: World, *spoilt: int) -> None:
    """Let the source push what a ticket asks for, but for these places, and commit."""
    frames = {frame.index: frame for frame in await it.frames_of(TOKENS)}

    def push(ticket: Ticket) -> None:
        wanted = [frames[page.index] for page in ticket.pages if page.index not in spoilt]
        world.receiving.arrive(ticket, *wanted)
        for index in spoilt:
            event: LandingEvent = FrameCorrupt(ticket.transfer, ticket.epoch, index, "flipped")
            world.receiving._sinks[ticket.transfer](event)
        world.receiving.commit(ticket, len(frames))

    world.source.push = push


@in_virtual_time
async def test_what_is_lacking_is_fetched_from_the_source_and_cached() -> None:
    async with holding() as world:
        await pushed(world)
        kept = await world.role.keep(CALL)
        assert kept == Kept(5, 5 * it.SPEC.page_bytes)
        (call,) = world.source.calls
        assert (call.session, call.ticket.boot, call.ticket.role) == (SESSION, HERE.boot, "prefill")
        assert [page.id for page in call.ticket.pages] == CHAIN
        await asyncio.sleep(0.1)
        assert (world.engine.match(CHAIN), world.held()) == (5, (0, 0, 5, 0))
        assert await world.role.keep(CALL) == Kept(5), "nothing is fetched twice"
        assert len(world.source.calls) == 1
        assert world.receiving.fenced == []


@in_virtual_time
async def test_no_more_is_fetched_for_a_call_than_it_allows_and_the_next_goes_on_from_there() -> None:
    async with holding() as world:
        await pushed(world)
        assert (await world.role.keep(replace(CALL, most_pages=2))).pages == 2
        await asyncio.sleep(0.1)
        assert (await world.role.keep(replace(CALL, most_pages=2))).pages == 4
        assert [[page.index for page in call.ticket.pages] for call in world.source.calls] == [[0, 1], [2, 3]]


@in_virtual_time
async def test_a_page_that_fails_its_check_is_not_held_nor_what_continues_it() -> None:
    """Invariant 8."""
    async with holding() as world:
        await pushed(world, 2)
        assert (await world.role.keep(CALL)).pages == 2
        await asyncio.sleep(0.1)
        assert (world.engine.match(CHAIN), world.held()) == (2, (0, 0, 2, 0))
        assert world.receiving.fenced == [world.source.calls[0].ticket.transfer]


@in_virtual_time
async def test_another_tenant_s_salt_gives_the_same_tokens_other_pages() -> None:
    async with holding() as world:
        with pytest.raises(InvalidArgument) as refused:
            await world.role.keep(replace(CALL, tenant=TenantId("stranger")))
        assert refused.value.field == "tenant"
        assert world.source.calls == []


@pytest.mark.parametrize("fails", ["source is gone", "source hangs", "the call is cancelled"])
@in_virtual_time
async def test_however_a_call_fails_all_is_freed_but_what_landed(fails: str) -> None:
    """Invariant 16."""
    async with holding() as world:
        frames = await it.frames_of(TOKENS)
        world.source.push = lambda ticket: world.receiving.arrive(ticket, frames[0])
        world.source.hangs = fails != "source is gone"
        world.source.error = Unavailable("gone")
        failed: list[BatonError] = []

        async def keep() -> None:
            try:
                await world.role.keep(CALL)
            except BatonError as error:
                failed.append(error)

        call = world.group.create_task(keep())
        await asyncio.sleep(0.5)
        if fails == "the call is cancelled":
            call.cancel()
        await asyncio.wait((call,))
        expected = {"source is gone": [Unavailable], "source hangs": [DeadlineExceeded]}
        assert list(map(type, failed)) == expected.get(fails, [])
        await asyncio.sleep(0.1)
        assert (world.engine.match(CHAIN), world.held(), world.role.running()) == (1, (0, 0, 1, 0), 0)
        assert len(world.receiving.fenced) == 1


@in_virtual_time
async def test_without_room_a_call_is_refused_and_nothing_is_held() -> None:
    async with holding(pages=6) as world:
        own = Sequence(SequenceId("own"), tuple(range(50, 60)), replace(it.GREEDY, ignore_eos=True), it.SALT)
        world.engine.tell(Submit(own, DecodeLocal()))
        await asyncio.sleep(0.03)
        with pytest.raises(ResourceExhausted):
            await world.role.keep(CALL)
        assert world.source.calls == []


@in_virtual_time
async def test_copies_for_others_take_no_room_that_is_kept_for_a_session_that_is_away() -> None:
    """Invariant 11: a grant yields to sequences that run."""
    async with holding(pages=8) as world:
        sampling = replace(it.GREEDY, max_tokens=4)
        away = Sequence(SequenceId("away"), tuple(range(50, 67)), sampling, it.SALT, session=SESSION, keep=Quota(8, 8))
        world.engine.tell(Submit(away, DecodeLocal()))
        await asyncio.sleep(0.2)
        await pushed(world)
        with pytest.raises(ResourceExhausted):
            await world.role.keep(CALL)
        assert (await world.role.keep(replace(CALL, most_pages=2))).pages == 2
        await asyncio.sleep(0.1)
        assert [keeping for step in world.steps for keeping in step.keeping] == []


@in_virtual_time
async def test_an_erased_session_is_neither_held_nor_given_away_even_while_it_comes() -> None:
    """Invariant 13."""
    async with holding() as world:
        frames = await it.frames_of(TOKENS)
        world.source.push = lambda ticket: world.receiving.arrive(ticket, frames[0])
        call = world.group.create_task(world.role.keep(CALL))
        await asyncio.sleep(0.5)
        await world.role.forget_session(SESSION)
        ticket = world.source.calls[0].ticket
        world.receiving.arrive(ticket, *frames[1:])
        await call
        await asyncio.sleep(0.1)
        assert world.held() == (0, 0, 1, 0), "what landed before is for the engine's own forgetting"
        for refused in (world.role.keep(CALL), world.role.fetch(FetchCall(TICKET, SESSION))):
            with pytest.raises(StaleAttempt):
                await refused


@in_virtual_time
async def test_erasing_a_session_answers_a_call_that_still_waits_for_room() -> None:
    async with holding() as world:
        own = Sequence(SequenceId("own"), (50, 51, 52), replace(it.GREEDY, ignore_eos=True), it.SALT)
        world.engine.tell(Submit(own, DecodeLocal()))
        await asyncio.sleep(0.015)
        began = asyncio.get_running_loop().time()
        erasing = world.group.create_task(world.role.forget_session(SESSION))
        with pytest.raises(StaleAttempt):
            await world.role.keep(CALL)
        await erasing
        assert asyncio.get_running_loop().time() == began, "not only at its deadline"
        await asyncio.sleep(0.1)
        assert (world.held()[0], world.role.running(), world.source.calls) == (0, 0, [])


async def cached(world: World, tokens: tuple[int, ...]) -> None:
    sequence = Sequence(SequenceId("mine"), tokens, replace(it.GREEDY, max_tokens=1), it.SALT)
    world.engine.tell(Submit(sequence, DecodeLocal()))
    await asyncio.sleep(0.1)


@in_virtual_time
async def test_what_is_here_of_a_ticket_is_pushed_and_committed() -> None:
    transport = Pushing()
    async with holding(transport=transport) as world:
        await cached(world, TOKENS)
        assert await world.role.fetch(FetchCall(TICKET)) == Fetched(5, 5 * it.SPEC.page_bytes)
        frames = await it.frames_of(TOKENS)
        assert [(frame.page, bytes(frame.payload)) for frame in transport.frames] == [
            (frame.page, bytes(frame.payload)) for frame in frames
        ]
        assert transport.committed == [TICKET.transfer]


@in_virtual_time
async def test_pages_are_pushed_up_to_the_first_that_is_not_here() -> None:
    transport = Pushing()
    async with holding(transport=transport) as world:
        await cached(world, TOKENS[:13])
        assert (await world.role.fetch(FetchCall(TICKET))).pages == 3
        assert transport.committed == [TICKET.transfer]
        missing = replace(TICKET, pages=TICKET.pages[3:])
        with pytest.raises(NotFound):
            await world.role.fetch(FetchCall(missing))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fingerprint": "0" * 32}, "ticket.fingerprint"),
        ({"dtype": "bfloat16"}, "ticket.dtype"),
        ({"pages": ()}, "ticket.pages"),
        ({"pages": (TicketPage(0, CHAIN[0], 2),)}, "ticket.pages"),
    ],
)
@in_virtual_time
async def test_a_ticket_that_cannot_be_served_is_refused_by_field(changes: dict[str, object], field: str) -> None:
    transport = Pushing()
    async with holding(transport=transport) as world:
        with pytest.raises((Incompatible, InvalidArgument)) as refused:
            await world.role.fetch(FetchCall(replace(TICKET, **changes)))  # type: ignore[arg-type]
        assert refused.value.field == field
        assert transport.aborted == []


@in_virtual_time
async def test_who_else_copies_pages_gets_his_own_answers_and_no_others() -> None:
    async with holding(transport=Pushing()) as world:
        await cached(world, TOKENS)
        asked = world.role.fetch(FetchCall(TICKET))
        fetching = world.group.create_task(asked)
        await settle()
        world.engine.tell(Copy((CHAIN[4], PageId(b"never seen"))))
        await fetching
        await asyncio.sleep(0.1)
        told = [copied for step in world.steps for copied in step.copied]
        assert [(each.page, each.asker) for each in told] == [(CHAIN[4], ""), (PageId(b"never seen"), "")]
        assert isinstance(told[0], Copied)
        assert told[0].payload is not None
        assert Frame(CHAIN[4], 4, it.PAGE, told[0].payload) == (await it.frames_of(TOKENS))[4]
