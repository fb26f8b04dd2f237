"""NIXL between two workers in one process: what lands, what is refused, what is given back."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest

from batonmesh.v1 import nixl_pb2 as pb
from batonmesh.v1 import nixl_pb2_grpc
from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt, SenderAborted
from runtime.errors import Incompatible, ResourceExhausted, StaleAttempt, Unavailable
from runtime.ids import TransferId
from runtime.kv.frames import HEADER_BYTES
from runtime.kv.transport.nixl.library import library
from runtime.kv.transport.nixl.memory import Region
from runtime.kv.transport.nixl.thread import AgentThread
from tests.kv.nixl.sides import SLOTS, Side, worker
from tests.kv.test_grpc_transport import Landing
from tests.scale import scaled

ONE = TransferId("one")
Call = grpc.aio.StreamStreamCall[pb.WriteRequest, pb.WriteResponse]


@pytest.fixture
async def receiver() -> AsyncIterator[Side]:
    async with worker("d:1") as side:
        yield side


@pytest.fixture
async def sender(receiver: Side) -> AsyncIterator[Side]:
    async with worker("p:1") as side:
        await side.meet("d:1", receiver.address)
        yield side


class Raw:
    """A writer by hand, which writes nothing: says what a test says, and collects the answers."""

    def __init__(self, receiver: Side, agent: str = "raw:1", address: str = "127.0.0.1:1") -> None:
        self.agent = agent
        self.address = address
        self.channel = grpc.aio.insecure_channel(receiver.address)
        self.call: Call = nixl_pb2_grpc.NixlStub(self.channel).Write(None, timeout=20)

    async def open(self, transfer: str, epoch: int = 1) -> list[int]:
        opened = pb.WriteOpen(agent=self.agent, address=self.address, transfer=transfer, epoch=epoch)
        await self.call.write(pb.WriteRequest(open=opened))
        return list((await self.answer()).granted)

    async def answer(self) -> pb.WriteResponse:
        answer = await self.call.read()
        assert isinstance(answer, pb.WriteResponse)
        return answer

    async def close(self) -> None:
        await self.channel.close(None)


async def test_many_frames_land_in_order_through_few_slots(sender: Side, receiver: Side) -> None:
    landing = receiver.expect("one")
    async with sender.nixl.writers.open(sender.ticket("one", receiver.address), "d:1") as pushing:
        for index in range(20):
            await pushing.send(sender.frame(index, bytes([index])))
        await pushing.commit()
    arrived = {event.frame.index: event for event in landing.of(FrameArrived) if isinstance(event, FrameArrived)}
    assert arrived == {index: FrameArrived(ONE, 1, sender.frame(index, bytes([index])), "nixl") for index in range(20)}
    assert landing.events[-1] == CommitArrived(ONE, 1, 20)
    assert receiver.counts() == (SLOTS, 0, 0)
    assert receiver.nixl.writing() == sender.nixl.writing() == 0


async def test_many_transfers_at_once_share_the_memory_that_they_leave_from(sender: Side, receiver: Side) -> None:
    async def push(name: str) -> int:
        landing = receiver.expect(name, pages=1)
        async with sender.nixl.writers.open(sender.ticket(name, receiver.address), "d:1") as pushing:
            for index in range(10):
                await pushing.send(sender.frame(index))
            await pushing.commit()
        return len(landing.of(FrameArrived))

    async with asyncio.TaskGroup() as group:
        pushes = [group.create_task(push(name)) for name in ("one", "other")]
    assert [each.result() for each in pushes] == [10, 10]


async def test_an_abort_is_told_and_the_slots_come_back(sender: Side, receiver: Side) -> None:
    landing = receiver.expect("one")
    async with sender.nixl.writers.open(sender.ticket("one", receiver.address), "d:1") as pushing:
        await pushing.send(sender.frame(0))
    await landing.wait_for(SenderAborted)
    assert receiver.counts() == (SLOTS, 0, 0)
    assert len(sender.nixl.writers.free) == SLOTS


async def test_a_fence_ends_the_sender_and_frees_the_slots(sender: Side, receiver: Side) -> None:
    landing = receiver.expect("one")
    async with sender.nixl.writers.open(sender.ticket("one", receiver.address), "d:1") as pushing:
        await pushing.send(sender.frame(0))
        await landing.wait_for(FrameArrived)
        await receiver.fence("one")
        assert receiver.counts() == (SLOTS, 0, 0)
        with pytest.raises(StaleAttempt):
            await pushing.send(sender.frame(1))
    assert landing.of(SenderAborted) == []


async def test_to_whom_nothing_is_connected_yet_it_connects_and_the_transfer_goes_another_way(receiver: Side) -> None:
    async with worker("p:2") as stranger:
        receiver.expect("one")
        with pytest.raises(Unavailable, match="not connected to it yet"):
            async with stranger.nixl.writers.open(stranger.ticket("one", receiver.address), "d:1"):
                pass
        await stranger.meet("d:1", receiver.address)
        async with stranger.nixl.writers.open(stranger.ticket("one", receiver.address), "d:1"):
            pass


@pytest.mark.parametrize(("transfer", "epoch", "reason"), [("other", 1, "not open here"), ("one", 2, "not 2")])
async def test_a_transfer_that_is_not_open_is_refused(
    sender: Side, receiver: Side, transfer: str, epoch: int, reason: str
) -> None:
    receiver.expect("one")
    raw = Raw(receiver)
    with pytest.raises(grpc.aio.AioRpcError, match=reason):
        await raw.open(transfer, epoch)
    await raw.close()
    assert receiver.counts() == (SLOTS, 0, 0)
    assert sum(receiver.transport.transfers.refused.values()) == 1


async def test_without_a_free_slot_the_transfer_has_to_go_another_way(sender: Side, receiver: Side) -> None:
    raws = [Raw(receiver, f"raw:{number}") for number in range(2)]
    for raw in raws:
        receiver.expect(raw.agent)
        assert len(await raw.open(raw.agent)) == SLOTS // 2
    landing = receiver.expect("one")
    with pytest.raises(ResourceExhausted, match="0 free, 4 granted, 0 quarantined"):
        async with sender.nixl.writers.open(sender.ticket("one", receiver.address), "d:1"):
            pass
    assert landing.events == [], "and it stays open for that other way"
    for raw in raws:
        await raw.call.write(pb.WriteRequest(quiet=True))
        await raw.call.read()
        await raw.close()


async def test_no_agent_has_more_than_half_of_the_slots(receiver: Side) -> None:
    first, second = Raw(receiver), Raw(receiver)
    receiver.expect("one")
    receiver.expect("two")
    assert len(await first.open("one")) == SLOTS // 2
    with pytest.raises(grpc.aio.AioRpcError, match="no staging slot is free"):
        await second.open("two")
    await first.close()
    await second.close()


async def test_what_is_not_within_the_grant_is_counted_and_nothing_lands(receiver: Side) -> None:
    landing, raw = receiver.expect("one"), Raw(receiver)
    granted = await raw.open("one")
    foreign = next(slot for slot in range(SLOTS) if slot not in granted)
    size = receiver.transport.codec.max_bytes
    wrong = [(foreign, size), (2**32 - 1, size), (granted[0], 2**32 - 1), (granted[0], 0)]
    placed = [pb.Placed(slot=slot, length=length) for slot, length in wrong]
    await raw.call.write(pb.WriteRequest(placed=placed, commit=0))
    assert (await raw.answer()).committed
    assert landing.events == [CommitArrived(ONE, 1, 0)]
    assert receiver.transport.transfers.refused == {"placed": 4}
    await raw.close()


async def test_a_frame_damaged_in_its_slot_is_counted_and_never_lands(receiver: Side) -> None:
    landing, raw = receiver.expect("one"), Raw(receiver)
    slot = (await raw.open("one"))[0]
    memory = receiver.nixl.receiver.memory.slot(slot)
    length = receiver.transport.codec.place(receiver.frame(0), memory)
    memory[HEADER_BYTES + 3] ^= 1
    del memory
    await raw.call.write(pb.WriteRequest(placed=[pb.Placed(slot=slot, length=length)]))
    assert list((await raw.answer()).taken) == [slot]
    assert [type(event) for event in landing.events] == [FrameCorrupt]
    await raw.call.write(pb.WriteRequest(quiet=True))
    await raw.call.read()
    await raw.close()


async def test_who_is_asked_after_its_process_was_started_anew_is_gone_and_its_slots_come_back(receiver: Side) -> None:
    """The generation that wrote is no more: another one answers at its address."""
    landing = receiver.expect("one")
    async with worker("p:2") as second:
        await left(receiver, landing, Raw(receiver, "p:1", second.address))


async def test_whom_its_host_does_not_know_any_more_is_gone_and_its_slots_come_back(receiver: Side) -> None:
    landing = receiver.expect("one")
    await left(receiver, landing, Raw(receiver, address="127.0.0.1:1"))


async def left(receiver: Side, landing: Landing, raw: Raw) -> None:
    """It opens a transfer, and its call ends without a word."""
    await raw.open("one")
    await raw.close()
    await landing.wait_for(SenderAborted)
    assert receiver.counts() == (2, 0, 2)
    async with asyncio.timeout(10):
        await receiver.fence("one")
    assert receiver.counts() == (SLOTS, 0, 0)


async def test_a_receiver_started_anew_at_its_address_is_another_one(sender: Side) -> None:
    async with worker("d:7") as first:
        await sender.meet("d:7", first.address)
        port = int(first.address.rpartition(":")[2])
    async with worker("d:8", port=port) as second:
        landing = second.expect("one")
        sender.nixl.writers.part("d:7")
        await sender.meet("d:8", second.address)
        async with sender.nixl.writers.open(sender.ticket("one", second.address), "d:8") as pushing:
            await pushing.send(sender.frame(0))
            await pushing.commit()
        assert len(landing.of(FrameArrived)) == 1
        with pytest.raises(Unavailable, match="d:8 is at its address now"):
            await sender.meet("d:7", second.address)


@pytest.mark.parametrize("field", ["backend", "fingerprint"])
def test_a_writer_without_a_way_in_common_is_refused_by_the_field(receiver: Side, field: str) -> None:
    fingerprint = receiver.spec.kv_fingerprint
    request = pb.MeetRequest(agent="p:1", backend="UCX", fingerprint=fingerprint)
    assert receiver.nixl.receiver.meet(request).agent == "d:1"
    setattr(request, field, "another")
    with pytest.raises(Incompatible) as error:
        receiver.nixl.receiver.meet(request)
    assert error.value.field == field


async def test_memory_that_the_backend_cannot_write_into_is_refused() -> None:
    thread = AgentThread(library(), "t:1", "UCX")
    await thread.start()
    try:
        with pytest.raises(Unavailable, match="not into FILE"):
            await thread.register(Region(0, 4096, "FILE"))
        assert thread.left() == (0, 0)
    finally:
        await thread.stop()


async def test_a_backend_that_is_not_there_is_told() -> None:
    with pytest.raises(Unavailable, match="NONESUCH does not start here"):
        await AgentThread(library(), "t:1", "NONESUCH").start()


async def test_aborting_at_random_points_leaves_every_slot_free_and_no_registration(receiver: Side) -> None:
    source = random.Random(4)

    async def one(sender: Side, name: str) -> None:
        landing = receiver.expect(name, pages=source.randint(1, 3))
        try:
            async with sender.nixl.writers.open(sender.ticket(name, receiver.address), "d:1") as pushing:
                for index in range(source.randint(0, 4)):
                    await pushing.send(sender.frame(index))
                if source.random() < 0.5:
                    await receiver.fence(name)
                if source.random() < 0.3:
                    await pushing.commit()
        except (StaleAttempt, ResourceExhausted):
            pass
        finally:
            await receiver.fence(name)
        assert landing.of(FrameCorrupt) == []

    async with worker("p:1") as sender:
        await sender.meet("d:1", receiver.address)
        threads = [side.nixl.writers.thread for side in (sender, receiver)]
        for start in range(0, scaled(200, 10_000), 4):
            async with asyncio.TaskGroup() as group:
                for number in range(start, start + 4):
                    group.create_task(one(sender, f"xfer-{number}"))
        assert receiver.counts() == (SLOTS, 0, 0)
        assert receiver.nixl.writing() == sender.nixl.writing() == len(receiver.transport.transfers) == 0
        assert len(sender.nixl.writers.free) == SLOTS
        assert [thread.left() for thread in threads] == [(2, 0), (2, 0)], "the two arenas, and no write"
    assert threads[0].left() == (0, 0)
