"""A gateway's sessions over a real store that somebody meddles with, and decode workers in the hands of the test."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.clock import LoopClock
from runtime.domain.messages import Output, Start
from runtime.domain.sequence import FinishReason, Ref, Sampled, Sampling
from runtime.domain.sessions import Asked, Ending, Halt, Item, OnConflict, Progress, Session, TurnRecord, TurnStatus
from runtime.domain.spec import ModelSpec
from runtime.domain.tools import Tool, Toolbox, ToolResult
from runtime.engine.simulated import simulated_spec
from runtime.errors import NotFound, Unavailable
from runtime.ids import Ids, SessionId, TenantId, TurnId
from runtime.roles.session_settings import SessionSettings
from runtime.roles.sessions import SessionRole
from runtime.session_store import SessionStore
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.roles.one_gateway import SPEC, Held, gateway, member, out
from tests.roles.virtual import settle
from tests.store.talking import MASTER

TENANT = TenantId("tenant")
ASKED = Asked((Item("user", "Hi"),), Sampling(max_tokens=9), True, 60.0)
SETTINGS = SessionSettings(lease_s=30.0, beat_s=0.05, retry_s=0.01, store_grace_s=1.0, poll_s=0.01)
QUEUED = replace(ASKED, on_conflict=OnConflict.ENQUEUE, sampling=Sampling(max_tokens=1))
Meddling = Callable[[str], Awaitable[None]]


class MeddledStore:
    """Calls the test after each call of the real one, and does not tell of it if that raises."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.after: Meddling = _nothing

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def called(*arguments: object) -> object:
            result = await getattr(self._store, name)(*arguments)
            await self.after(name)
            return result

        return called


async def _nothing(name: str) -> None:
    pass


@dataclass
class Kept:
    role: SessionRole
    store: MeddledStore
    held: Held
    session: SessionId

    async def start(self) -> Start:
        """The newest start that the decode worker got."""
        async with asyncio.timeout(10):
            while not self.held.starts("a"):  # noqa: ASYNC110 - it comes from another thread in the end
                await asyncio.sleep(0.01)
        return self.held.starts("a")[-1]

    async def bring(self, ref: Ref, index: int, finish: FinishReason | None = None) -> None:
        self.held.mesh.workers["a"].say(out(ref, index, finish=finish))
        await settle()

    async def open(self, asked: Asked = ASKED) -> TurnRecord:
        turn, fresh = await self.role.open(TENANT, self.session, "main", asked, None)
        assert fresh
        return turn

    async def live(self) -> TurnId | None:
        """The turn that runs on the branch."""
        _, (branch,) = await self.store.get(TENANT, self.session)
        live: TurnId | None = branch.live
        return live

    async def started(self, count: int) -> Start:
        """The last of so many starts that the decode worker got."""
        async with asyncio.timeout(5):
            while len(self.held.starts("a")) < count:  # noqa: ASYNC110 - it comes from another thread in the end
                await asyncio.sleep(0.01)
        return self.held.starts("a")[-1]

    async def watched(self, turn: TurnRecord) -> list[Progress]:
        async with asyncio.timeout(20):
            return [progress async for progress in self.role.watch(turn, 0)]


@asynccontextmanager
async def keeping(tmp_path: Path, spec: ModelSpec = SPEC) -> AsyncIterator[Kept]:
    database = SqliteDatabase(tmp_path / "sessions.sqlite", MASTER)
    await database.open()
    store = MeddledStore(SqlSessionStore(database))
    async with gateway(member("a", spec=spec), spec=spec) as held, asyncio.TaskGroup() as group:
        role = SessionRole(held.role, store, Ids(random.Random(2)), LoopClock(), SETTINGS, _inline)  # type: ignore[arg-type]
        made = await store.create(Session(SessionId("sess-1"), TENANT, "model", 0, vocabulary="simulated"), None)
        running = group.create_task(role.run())
        await settle()
        yield Kept(role, store, held, made.id)
        running.cancel()
    await database.close()


async def _inline(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the work makes
    return work()


async def test_a_turn_that_is_just_being_opened_is_not_taken_for_one_that_was_left(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:

        async def look_after(name: str) -> None:
            if name == "open":
                kept.store.after = _nothing
                await kept.role._look_after()

        kept.store.after = look_after
        turn = await kept.open()
        await kept.bring((await kept.start()).ref, 0, FinishReason.STOP)
        (*_, last) = await kept.watched(turn)
        assert (last.turn.epoch, kept.role.running()) == (1, 0)
        assert last.turn.ending is not None
        assert last.turn.ending.status is TurnStatus.COMMITTED


@pytest.mark.parametrize("name", ["append", "finish"])
async def test_an_acknowledgement_that_is_lost_costs_nothing(tmp_path: Path, name: str) -> None:
    """What was written is written again as it was, and is there once."""
    async with keeping(tmp_path) as kept:
        lost = 3

        async def lose(called: str) -> None:
            nonlocal lost
            if called == name and lost:
                lost -= 1
                raise Unavailable("no answer")

        kept.store.after = lose
        turn = await kept.open()
        ref = (await kept.start()).ref
        for index in range(3):
            await kept.bring(ref, index)
        await kept.bring(ref, 3, FinishReason.STOP)
        progress = await kept.watched(turn)
        events = [event for each in progress for event in each.events]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [token for event in events for token in event.tokens] == [60, 61, 62, 63]
        assert lost == 0


async def test_a_store_that_stays_silent_leaves_the_turn_to_be_taken_up_again(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        silent = True

        async def say_nothing(called: str) -> None:
            if called == "append" and silent:
                raise Unavailable("no answer")

        kept.store.after = say_nothing
        turn = await kept.open()
        first = (await kept.start()).ref
        await kept.bring(first, 0)
        async with asyncio.timeout(10):
            while len(kept.held.starts("a")) < 2:  # noqa: ASYNC110 - the grace is the store's and the clock's
                await asyncio.sleep(0.01)
        silent = False
        again = await kept.start()
        assert (again.ref.epoch, again.forced) == (first.epoch + 1, (60,)), "what was written is forced"
        await kept.bring(first, 1)
        await kept.bring(again.ref, 1, FinishReason.STOP)
        progress = await kept.watched(turn)
        assert [token for each in progress for event in each.events for token in event.tokens] == [60, 61]


async def test_a_turn_that_has_begun_runs_although_the_store_did_not_tell(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        lost = 1

        async def lose(called: str) -> None:
            nonlocal lost
            if called == "begin" and lost:
                lost -= 1
                raise Unavailable("no answer")

        kept.store.after = lose
        first, waits = await kept.open(), await kept.open(QUEUED)
        await kept.started(1)
        await kept.role.halt(TENANT, kept.session, first.id, Halt.DISCARD)
        again = await kept.started(2)
        assert (again.ref.turn, lost) == (waits.id, 0)
        await kept.bring(again.ref, 0, FinishReason.STOP)
        (*_, last) = await kept.watched(waits)
        assert last.turn.ending is not None
        assert last.turn.ending.status is TurnStatus.COMMITTED


async def test_one_that_went_before_others_runs_although_the_store_did_not_tell(tmp_path: Path) -> None:
    """It waits behind them in the order in which they came."""
    async with keeping(tmp_path) as kept:
        lost = 1

        async def lose(called: str) -> None:
            nonlocal lost
            if called == "begin" and lost:
                lost -= 1
                raise Unavailable("no answer")

        kept.store.after = lose
        first, waits = await kept.open(), await kept.open(QUEUED)
        await kept.started(1)
        hurried = await kept.open(replace(QUEUED, on_conflict=OnConflict.INTERRUPT))
        again = await kept.started(2)
        assert (again.ref.turn, lost) == (hurried.id, 0)
        await kept.bring(again.ref, 0, FinishReason.STOP)
        for turn in (first, hurried, waits):
            (*_, last) = await kept.watched(turn)
            assert last.turn.ending is not None
        assert kept.role.running() == 0


async def test_who_waited_and_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.open()
        waits = [await kept.open(QUEUED) for _ in range(2)]
        await kept.store.drop(waits[0], Ending(TurnStatus.CANCELLED))
        async with asyncio.timeout(5):
            while waits[0].id in kept.role._waiting:  # noqa: ASYNC110 - a beat or two
                await asyncio.sleep(0.01)
            assert waits[1].id in kept.role._waiting
            await kept.store.delete(TENANT, kept.session)
            while kept.role._waiting:  # noqa: ASYNC110 - a beat or two
                await asyncio.sleep(0.01)


async def test_an_owner_beats_while_it_takes_over_what_others_left(tmp_path: Path) -> None:
    """Else it would lose its lease by that, and whoever takes over then would be next."""
    async with keeping(tmp_path) as kept:
        beats, stuck = 0, asyncio.Event()

        async def hang(called: str) -> None:
            nonlocal beats
            beats += called == "beat" and stuck.is_set()
            if called == "adopt":
                stuck.set()
                await asyncio.Event().wait()

        kept.store.after = hang
        async with asyncio.timeout(5):
            await stuck.wait()
            while beats < 3:  # noqa: ASYNC110 - they come by the clock
                await asyncio.sleep(0.01)


async def test_who_leaves_while_a_turn_is_opened_leaves_none_that_was_not_to_go_on_alone(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        stored = asyncio.Event()

        async def hang(called: str) -> None:
            if called == "open":
                stored.set()
                await asyncio.Event().wait()

        kept.store.after = hang
        opening = asyncio.get_running_loop().create_task(kept.open(replace(ASKED, cancel_unwatched=True)))
        await stored.wait()
        opening.cancel()
        await asyncio.wait((opening,))
        async with asyncio.timeout(5):
            while await kept.live():  # noqa: ASYNC110 - a beat or two
                await asyncio.sleep(0.01)


async def test_a_turn_whose_calls_were_resolved_while_it_was_prepared_is_prepared_anew(tmp_path: Path) -> None:
    """Invariant 9: it says what somebody else answered meanwhile, and not that nobody did."""
    async with keeping(tmp_path, simulated_spec("model", page_tokens=4, max_tokens=900)) as kept:
        first = await kept.open(replace(ASKED, toolbox=Toolbox((Tool("weather"),)), sampling=Sampling(max_tokens=99)))
        start = await kept.started(1)
        call = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
        tokens = tuple(Sampled(token) for token in call.encode())
        kept.held.mesh.workers["a"].say(Output(start.ref, 0, tokens, call, FinishReason.STOP))
        (*_, last) = await kept.watched(first)
        assert last.turn.ending is not None
        (made,) = last.turn.ending.calls

        async def answer(called: str) -> None:
            if called == "context":
                kept.store.after = _nothing
                results = (ToolResult(made.id, "Sunny."),)
                await kept.store.submit(TENANT, kept.session, "main", results, None)

        kept.store.after = answer
        second = await kept.open()
        assert [item.content for item in second.asked.items] == ["Sunny.", "Hi"]


async def test_a_turn_that_is_taken_up_again_where_it_runs_is_taken_up_once(tmp_path: Path) -> None:
    """The one that was fenced by that does not take the other with it."""
    async with keeping(tmp_path) as kept:
        told = asyncio.Event()

        async def hang(called: str) -> None:
            if called == "append":
                await told.wait()

        kept.store.after = hang
        turn = await kept.open()
        first = await kept.started(1)
        await kept.bring(first.ref, 0)
        await kept.bring(first.ref, 1)
        (left,) = await kept.store.adopt(kept.held.role.gateway, frozenset(), 64)
        await kept.role._adopt(left)
        second = await kept.started(2)
        told.set()
        await asyncio.sleep(5 * SETTINGS.beat_s)
        assert kept.held.starts("a") == [first, second]
        await kept.bring(second.ref, 1, FinishReason.STOP)
        (*_, last) = await kept.watched(turn)
        assert (last.turn.epoch, kept.role.running()) == (2, 0)


async def test_a_turn_of_an_erased_session_ends_at_once_for_whoever_watches_it(tmp_path: Path) -> None:
    """Also where no token comes that the store could refuse."""
    async with keeping(tmp_path) as kept:
        turn, waits = await kept.open(), await kept.open(QUEUED)
        await kept.start()
        watching = [asyncio.get_running_loop().create_task(kept.watched(each)) for each in (turn, waits)]
        await settle()
        await kept.store.erase(TENANT, kept.session)
        kept.role.leave(kept.session)
        for each in watching:
            with pytest.raises(NotFound):
                await each
        assert kept.role.running() == 0
        assert not kept.role._waiting
