"""A gateway's stream to a decode worker: when it connects, what it carries, and by what it is seen to have ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from runtime.domain.messages import Acknowledge, Attach, CancelAttempt, Output, StepBatch
from runtime.domain.sequence import Ref
from runtime.errors import InvalidArgument, Unavailable
from runtime.ids import BootId, TurnId
from runtime.roles.stream import Ended, Stream, StreamSettings
from tests.roles.virtual import in_virtual_time, now, settle
from tests.roles.wires import Worker

SETTINGS = StreamSettings(attach_s=3.0, silence_s=5.0, commands=4)
REF = Ref(TurnId("turn"), 1, 1)
ATTACH = Attach(REF, 0)


@dataclass
class Held:
    """A stream, and what it told."""

    group: asyncio.TaskGroup
    worker: Worker
    batches: list[StepBatch] = field(default_factory=list)
    ends: list[tuple[float, Ended]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream = Stream(BootId("boot"), self.worker, SETTINGS, self.group, self.batches.append, self._ended)

    def _ended(self, stream: Stream, ended: Ended) -> None:
        assert stream is self.stream
        self.ends.append((now(), ended))


@asynccontextmanager
async def held(worker: Worker) -> AsyncIterator[Held]:
    async with asyncio.TaskGroup() as group:
        yield Held(group, worker)
        for task in group._tasks:
            task.cancel()


@in_virtual_time
async def test_it_connects_for_the_first_command_and_keeps_the_connection() -> None:
    async with held(Worker()) as it:
        assert it.worker.connections == 0
        for have in range(3):
            it.stream.send(Attach(REF, have))
            await settle()
        assert it.worker.connections == 1
        assert it.worker.commands == [Attach(REF, 0), Attach(REF, 1), Attach(REF, 2)]


@in_virtual_time
async def test_no_command_goes_out_before_the_workers_first_word() -> None:
    async with held(Worker(greeting=None)) as it:
        it.stream.send(ATTACH)
        await asyncio.sleep(1)
        assert it.worker.commands == []
        it.worker.say()
        await settle()
        assert it.worker.commands == [ATTACH]


@in_virtual_time
async def test_what_is_only_worth_telling_on_a_connection_makes_none() -> None:
    async with held(Worker()) as it:
        it.stream.tell(CancelAttempt(REF))
        await settle()
        assert it.worker.connections == 0
        it.stream.send(ATTACH)
        it.stream.tell(Acknowledge(REF))
        await settle()
        assert it.worker.commands == [ATTACH, Acknowledge(REF)]


@in_virtual_time
async def test_every_batch_is_handed_on_in_order() -> None:
    async with held(Worker()) as it:
        it.stream.send(ATTACH)
        await settle()
        one, two = Output(REF, 0, (), "one"), Output(REF, 0, (), "two")
        it.worker.say(one)
        it.worker.say(two)
        await settle()
        assert [batch.outputs for batch in it.batches] == [(), (one,), (two,)]


@in_virtual_time
async def test_a_worker_that_falls_silent_is_as_good_as_broken() -> None:
    async with held(Worker()) as it:
        it.stream.send(ATTACH)
        await asyncio.sleep(4)
        it.worker.say()
        await asyncio.sleep(60)
        assert it.ends == [(9.0, Ended(greeted=True, refused=False))]
        assert it.worker.open == 0


@in_virtual_time
async def test_a_worker_that_accepts_and_never_speaks_is_given_up() -> None:
    async with held(Worker(greeting=None)) as it:
        it.stream.send(ATTACH)
        await asyncio.sleep(60)
        assert it.ends == [(3.0, Ended(greeted=False, refused=False))]


@in_virtual_time
async def test_a_connection_that_is_never_made_is_given_up() -> None:
    async with held(Worker(connecting=asyncio.Event())) as it:
        it.stream.send(ATTACH)
        await asyncio.sleep(60)
        assert it.ends == [(3.0, Ended(greeted=False, refused=False))]


@in_virtual_time
async def test_a_refused_connection_is_told_as_one() -> None:
    async with held(Worker(refuses=Unavailable("nobody listens"))) as it:
        it.stream.send(ATTACH)
        await settle()
        assert it.ends == [(0.0, Ended(greeted=False, refused=True))]


@pytest.mark.parametrize("error", [None, Unavailable("reset"), InvalidArgument("a malformed batch")])
@in_virtual_time
async def test_a_stream_that_ends_or_breaks_is_told_as_broken(error: Unavailable | None) -> None:
    async with held(Worker()) as it:
        it.stream.send(ATTACH)
        await settle()
        it.worker.hang_up(error)
        await settle()
        assert it.ends == [(0.0, Ended(greeted=True, refused=False))]


@in_virtual_time
async def test_a_worker_that_reads_no_commands_is_broken_at_the_bound() -> None:
    async with held(Worker(reads=False)) as it:
        for _ in range(SETTINGS.commands + 1):
            it.stream.send(ATTACH)
            await settle()
        assert it.ends == []
        it.stream.send(ATTACH)
        await settle()
        assert it.ends == [(0.0, Ended(greeted=True, refused=False))]
        assert it.worker.open == 0


@in_virtual_time
async def test_commands_that_pile_up_before_the_first_word_end_the_connection_once_it_is_made() -> None:
    worker = Worker(connecting=asyncio.Event())
    async with held(worker) as it:
        for _ in range(SETTINGS.commands + 1):
            it.stream.send(ATTACH)
        await settle()
        assert worker.connecting is not None
        worker.connecting.set()
        await settle()
        assert it.ends == [(0.0, Ended(greeted=True, refused=False))]


@in_virtual_time
async def test_the_next_command_connects_again_and_repeats_nothing() -> None:
    async with held(Worker()) as it:
        it.stream.send(ATTACH)
        await settle()
        it.worker.hang_up()
        await settle()
        it.stream.send(Attach(REF, 7))
        await settle()
        assert it.worker.connections == 2
        assert it.worker.commands == [ATTACH, Attach(REF, 7)]


@in_virtual_time
async def test_a_closed_stream_ends_and_can_connect_again() -> None:
    async with held(Worker()) as it:
        it.stream.close()
        it.stream.send(ATTACH)
        await settle()
        assert it.worker.open == 1
        it.stream.close()
        await settle()
        assert it.ends == [(0.0, Ended(greeted=True, refused=False))]
        it.stream.send(ATTACH)
        await settle()
        assert it.worker.open == 1


@in_virtual_time
async def test_a_gateway_that_stops_ends_its_streams_and_asks_nothing_of_them() -> None:
    async with held(Worker()) as it:
        it.stream.send(ATTACH)
        await settle()
    assert (it.ends, it.worker.open) == ([], 0)


@in_virtual_time
async def test_a_bug_in_whoever_takes_the_batches_is_not_swallowed() -> None:
    async def stream(worker: Worker) -> None:
        def fail(batch: StepBatch) -> None:
            raise ZeroDivisionError(batch)

        async with asyncio.TaskGroup() as group:
            Stream(BootId("boot"), worker, SETTINGS, group, fail, lambda *_: None).send(ATTACH)

    with pytest.raises(ExceptionGroup) as failed:
        await stream(Worker())
    assert failed.value.split(ZeroDivisionError)[1] is None
