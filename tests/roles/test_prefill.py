"""A prefill worker: pushes what the ticket names, and leaves nothing behind however a call ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from runtime.clock import LoopClock
from runtime.domain.batching import Limits
from runtime.domain.messages import PrefillCall, PrefillDone, Ticket, TicketPage
from runtime.domain.pages import extend_chain
from runtime.domain.spec import Kind, LayerGroup
from runtime.domain.steps import StepOutput
from runtime.engine.simulated import SimulatedEngine, StepProfile, simulated_spec
from runtime.engine.simulated_kv import KvShape
from runtime.errors import BatonError, DeadlineExceeded, EngineFailed, Incompatible, StaleAttempt, Unavailable
from runtime.ids import BootId, PageId, SessionId, TenantId, TransferId
from runtime.ports import Tiers
from runtime.roles import prefill
from runtime.roles.prefill import PrefillRole
from runtime.roles.tierless import TIERLESS
from tests.roles.virtual import in_virtual_time, settle
from tests.roles.wires import Pushing

SPEC = simulated_spec("simulated", page_tokens=4, max_tokens=200)
TENANT, SALT = TenantId("tenant"), b"salt"
TOKENS = tuple(range(19))
CHAIN = extend_chain([], SALT, TOKENS, 4, SPEC.kv_fingerprint)
TAIL = PageId(b"t" * 16)
PAGES = (*(TicketPage(index, CHAIN[index], 4) for index in range(4)), TicketPage(4, TAIL, 2))
TICKET = Ticket(
    TransferId("transfer"), 1, BootId("boot"), "by hand", "there", SPEC.kv_fingerprint, "float32", PAGES, 9000
)
CALL = PrefillCall(TENANT, TOKENS, TICKET)


class Engine(SimulatedEngine):
    """A simulated engine that a test can make die."""

    def __init__(self) -> None:
        super().__init__(SPEC, 64, Limits(step_tokens=4, max_running=4), StepProfile(base_ms=100), LoopClock())
        self.dies = asyncio.Event()

    async def steps(self) -> AsyncIterator[StepOutput]:
        async for output in super().steps():
            if self.dies.is_set():
                raise EngineFailed("it burnt")
            yield output


@dataclass
class Worker:
    role: PrefillRole
    engine: Engine
    transport: Pushing
    group: asyncio.TaskGroup
    serving: "asyncio.Task[None]"

    def nothing_left(self) -> bool:
        load = self.engine.load()
        return (self.role.running(), load.running, load.waiting, load.pages.owned) == (0, 0, 0, 0)


@asynccontextmanager
async def worker(tiers: Tiers = TIERLESS) -> AsyncIterator[Worker]:
    engine, transport = Engine(), Pushing()
    role = PrefillRole(engine, transport, {TENANT: SALT}, tiers)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(role.run())
        yield Worker(role, engine, transport, group, serving)
        serving.cancel()


def ticket(*indices: int, **changes: object) -> PrefillCall:
    pages = tuple(page for page in PAGES if page.index in indices)
    return replace(CALL, ticket=replace(TICKET, pages=pages, **changes))  # type: ignore[arg-type]


async def failing(call: Awaitable[PrefillDone]) -> BatonError | None:
    """What a call fails with."""
    try:
        await call
    except BatonError as error:
        return error
    return None


@in_virtual_time
async def test_all_pages_but_those_of_the_last_token_are_pushed_then_committed() -> None:
    async with worker() as it:
        done = await it.role.prefill(CALL)
        assert (done.cached_tokens, done.pages, done.payload_bytes) == (0, 5, 18 * 8)
        assert [(frame.index, frame.valid_tokens) for frame in it.transport.frames] == [
            (0, 4), (1, 4), (2, 4), (3, 4), (4, 2),
        ]  # fmt: skip
        assert [frame.page for frame in it.transport.frames][:4] == CHAIN
        assert (it.transport.committed, it.transport.aborted) == ([TICKET.transfer], [])
        await asyncio.sleep(1)
        assert it.nothing_left()


@in_virtual_time
async def test_pages_go_out_while_the_next_are_computed() -> None:
    async with worker() as it:
        call = it.group.create_task(it.role.prefill(CALL))
        counts = []
        for _ in range(5):
            await asyncio.sleep(0.1)
            await settle()
            counts.append(len(it.transport.frames))
        assert counts == [1, 2, 3, 4, 5]
        await call


@in_virtual_time
async def test_it_tells_how_long_it_computed_and_how_much_of_the_pushing_that_did_not_hide() -> None:
    async with worker() as it:
        call = it.group.create_task(it.role.prefill(CALL))
        await asyncio.sleep(0.25)
        it.transport.gate.clear()
        await asyncio.sleep(0.6)
        it.transport.gate.set()
        done = await call
        assert done.prefill_ms == pytest.approx(500, abs=1), "five steps of 100 ms"
        assert done.exposed_ms == pytest.approx(350, abs=1), "the path was shut until then"


@in_virtual_time
async def test_only_the_pages_of_the_ticket_are_pushed() -> None:
    async with worker() as it:
        done = await it.role.prefill(ticket(1, 4))
        assert [frame.index for frame in it.transport.frames] == [1, 4]
        assert (done.pages, done.payload_bytes) == (2, 6 * 8)


@in_virtual_time
async def test_what_an_earlier_prefill_left_in_the_cache_is_not_computed_again() -> None:
    async with worker() as it:
        await it.role.prefill(CALL)
        done = await it.role.prefill(ticket(0, 1, 2, 3, 4, transfer=TransferId("second")))
        assert (done.cached_tokens, done.pages) == (16, 5)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (replace(CALL, tenant=TenantId("stranger")), "tenant"),
        (ticket(0, fingerprint="0" * 32), "ticket.fingerprint"),
        (ticket(), "ticket.pages"),
    ],
)
@in_virtual_time
async def test_a_call_that_cannot_be_served_is_refused_by_field_before_anything_is_opened(
    call: PrefillCall, field: str
) -> None:
    async with worker() as it:
        with pytest.raises(BatonError) as refused:
            await it.role.prefill(call)
        assert refused.value.field == field
        assert it.transport.aborted == []
        assert it.nothing_left()


@in_virtual_time
async def test_a_prompt_beyond_the_engines_room_fails_the_call_with_its_reason() -> None:
    async with worker() as it:
        with pytest.raises(BatonError, match="the prompt has 200 tokens") as refused:
            await it.role.prefill(replace(CALL, tokens=(1,) * 200))
        assert refused.value.status.code == "context"
        assert it.transport.aborted == [TICKET.transfer]


@in_virtual_time
async def test_a_call_that_comes_twice_is_refused_and_the_first_goes_on() -> None:
    async with worker() as it:
        first = it.group.create_task(it.role.prefill(CALL))
        await asyncio.sleep(0.15)
        with pytest.raises(StaleAttempt, match="is running here already"):
            await it.role.prefill(CALL)
        assert (await first).pages == 5


@in_virtual_time
async def test_the_deadline_ends_a_call_and_frees_everything() -> None:
    async with worker() as it:
        with pytest.raises(DeadlineExceeded) as late:
            await it.role.prefill(ticket(0, 1, 2, 3, 4, remaining_ms=250))
        assert late.value.field == "ticket.remaining_ms"
        await asyncio.sleep(1)
        assert it.transport.aborted == [TICKET.transfer]
        assert it.nothing_left()


@in_virtual_time
async def test_a_cancelled_call_frees_everything_and_aborts_the_transfer() -> None:
    async with worker() as it:
        call = it.group.create_task(it.role.prefill(CALL))
        await asyncio.sleep(0.25)
        call.cancel()
        await asyncio.sleep(1)
        assert it.transport.aborted == [TICKET.transfer]
        assert it.nothing_left()
        assert it.engine.core._step < 5, "it went on computing"


@in_virtual_time
async def test_a_broken_path_fails_the_call_and_frees_everything() -> None:
    async with worker() as it:
        it.transport.breaks_after = 2
        with pytest.raises(Unavailable, match="the path broke"):
            await it.role.prefill(CALL)
        await asyncio.sleep(1)
        assert it.nothing_left()


@in_virtual_time
async def test_a_path_slower_than_the_engine_loses_nothing() -> None:
    async with worker() as it:
        it.transport.gate.clear()
        call = it.group.create_task(it.role.prefill(CALL))
        await asyncio.sleep(2)
        assert it.transport.frames == []
        it.transport.gate.set()
        assert (await call).pages == 5


@in_virtual_time
async def test_no_more_is_computed_ahead_of_a_slow_path_than_may_wait_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "_AHEAD_BYTES", 2 * SPEC.page_bytes)
    async with worker() as it:
        it.transport.gate.clear()
        call = it.group.create_task(it.role.prefill(CALL))
        await asyncio.sleep(3)
        assert it.engine.match(CHAIN) == 2
        assert it.nothing_left() is False
        it.transport.gate.set()
        done = await call
        assert [frame.index for frame in it.transport.frames] == [0, 1, 2, 3, 4]
        assert (done.cached_tokens, done.pages, it.transport.committed) == (0, 5, [TICKET.transfer])
        assert done.prefill_ms == pytest.approx(500, abs=1), "five steps of 100 ms"
        assert done.exposed_ms == pytest.approx(2800, abs=1), "it waited for the path, and computed nothing meanwhile"
        done = await it.role.prefill(ticket(0, 1, 2, 3, 4, transfer=TransferId("second")))
        assert (done.cached_tokens, done.pages) == (16, 5)
        it.transport.gate.clear()
        third = replace(CALL, session=SessionId("sess"), ticket=replace(TICKET, transfer=TransferId("third")))
        erased = it.group.create_task(failing(it.role.prefill(third)))
        await asyncio.sleep(1)
        await it.role.forget_session(SessionId("sess"))
        it.transport.gate.set()
        assert isinstance(await erased, StaleAttempt)
        await asyncio.sleep(1)
        assert it.nothing_left()


@in_virtual_time
async def test_an_engine_that_dies_fails_every_call_and_the_worker() -> None:
    async with worker() as it:
        # Waited for out here, so that the worker's failure does not end the test's own group first.
        it.serving.cancel()
        await settle()
        calls = [
            asyncio.gather(it.role.prefill(ticket(0, 1, transfer=TransferId(name))), return_exceptions=True)
            for name in ("one", "other")
        ]
        await settle()
        it.engine.dies.set()
        with pytest.raises(EngineFailed, match="it burnt"):
            await it.role.run()
        assert [type(error) for call in calls for error in await call] == [EngineFailed, EngineFailed]
        assert it.role.running() == 0


@in_virtual_time
async def test_a_ticket_that_takes_no_pages_of_this_data_type_is_refused_by_name() -> None:
    async with worker() as it:
        with pytest.raises(
            Incompatible, match="computed in bfloat16 and float16 alone, and these are in float32"
        ) as told:
            await it.role.prefill(ticket(0, dtype="bfloat16", dtypes=("float16",)))
        assert told.value.field == "ticket.dtype"
        assert it.transport.frames == []
        assert it.nothing_left()
        done = await it.role.prefill(ticket(0, dtype="bfloat16", dtypes=("float32",)))
        assert done.pages == 1


@in_virtual_time
async def test_a_receiver_that_joins_no_parts_gets_no_pages_of_several_groups() -> None:
    async with worker() as it:
        halves = (LayerGroup((0,), 1, 1, Kind.LATENT), LayerGroup((1,), 1, 1, Kind.LATENT))
        it.engine.spec = replace(SPEC, groups=halves)
        with pytest.raises(Incompatible, match="2 groups of layers") as told:
            await it.role.prefill(ticket(0))
        assert told.value.field == "ticket.parts"
        assert (await it.role.prefill(ticket(0, parts=True))).pages == 1


@in_virtual_time
async def test_pages_go_out_layer_by_layer_and_only_the_last_layers_are_waited_for() -> None:
    spec = simulated_spec("wide", 4, 200, KvShape(layers=4, kv_heads=1, head_dim=2))
    clock, transport = LoopClock(), Pushing()
    engine = SimulatedEngine(spec, 64, Limits(step_tokens=64, max_running=4), StepProfile(base_ms=400), clock)
    role = PrefillRole(engine, transport, {TENANT: SALT}, cut=spec.cut(2).groups)
    chain = extend_chain([], SALT, TOKENS, 4, spec.kv_fingerprint)
    pages = tuple(TicketPage(index, chain[index], 4) for index in range(4))
    asked = replace(CALL, ticket=replace(TICKET, fingerprint=spec.kv_fingerprint, pages=pages))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(role.run())
        with pytest.raises(Incompatible, match="2 groups of layers here"):
            await role.prefill(asked)
        call = group.create_task(role.prefill(replace(asked, ticket=replace(asked.ticket, parts=True))))
        counts = []
        for _ in range(4):
            await asyncio.sleep(0.1)
            await settle()
            counts.append(len(transport.frames))
        assert counts == [0, 4, 4, 8]
        done = await call
        assert (done.pages, done.payload_bytes) == (4, 16 * spec.token_bytes)
        serving.cancel()
