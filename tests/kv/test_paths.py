"""Which way pages go between two workers: shared memory where both can, gRPC otherwise, and why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.domain.landing import FrameArrived
from runtime.domain.messages import Offer, Path, Ticket
from runtime.ids import BootId, TransferId
from runtime.kv.transport.paths import Paths, Shm
from tests.kv.shm.writing import frame
from tests.kv.test_frames import CODEC, SPEC
from tests.kv.test_grpc_transport import Landing, side

BOOT = BootId("boot-1")


@asynccontextmanager
async def worker(*, shm: bool = True, slots: int = 4) -> AsyncIterator[Paths]:
    async with side() as grpc:
        memory = Shm(grpc.transport, slots * CODEC.max_bytes) if shm else None
        try:
            yield Paths(grpc.transport, memory, "" if shm else "this worker was told so")
        finally:
            if memory is not None:
                memory.close()


def expect(receiver: Paths, landing: Landing, name: str = "one") -> Ticket:
    transfer = TransferId(name)
    endpoint = receiver.expect(transfer, 1, (), landing)
    return Ticket(transfer, 1, BOOT, "grpc", endpoint, SPEC.kv_fingerprint, SPEC.dtype, (), 20_000, receiver.offers)


async def push(sender: Paths, ticket: Ticket, frames: int = 3) -> None:
    async with sender.open(ticket) as pushing:
        for index in range(frames):
            await pushing.send(frame(index))
        await pushing.commit()


def came_by(landing: Landing) -> set[str]:
    return {event.path for event in landing.events if isinstance(event, FrameArrived)}


async def test_workers_of_one_host_share_memory_and_say_so() -> None:
    landing = Landing()
    async with worker() as sender, worker() as receiver:
        await push(sender, expect(receiver, landing))
        assert came_by(landing) == {"shm"}
        (path,) = sender.traffic().paths
        assert path == Path(BOOT, "shm", "one host: its memory could be mapped", 1, 3 * SPEC.page_bytes)
        assert receiver.receiving() == 0


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [(False, True, "this worker was told so"), (True, False, "the receiver offers no shared memory")],
)
async def test_where_one_end_has_no_shared_memory_pages_go_by_grpc_and_the_reason_is_told(
    here: bool, there: bool, reason: str
) -> None:
    landing = Landing()
    async with worker(shm=here) as sender, worker(shm=there) as receiver:
        await push(sender, expect(receiver, landing))
        assert came_by(landing) == {"grpc"}
        assert [(path.transport, path.reason) for path in sender.traffic().paths] == [("grpc", reason)]


async def test_a_receiver_of_another_host_is_reached_by_grpc() -> None:
    """Nobody listens to its socket's name here, whatever its host is called."""
    landing = Landing()
    async with worker() as sender, worker(shm=False) as receiver:
        receiver.offers = (Offer("carrier-pigeon", "roof"), Offer("shm", "baton-kv-of-another-host"))
        await push(sender, expect(receiver, landing))
        assert came_by(landing) == {"grpc"}
        assert "not on this host" in sender.traffic().paths[0].reason


async def test_without_a_free_slot_a_transfer_goes_by_grpc_and_the_next_through_memory_again() -> None:
    landings = [Landing() for _ in range(4)]
    async with worker() as first, worker() as second, worker() as third, worker(slots=2) as receiver:
        tickets = [expect(receiver, landing, f"xfer-{number}") for number, landing in enumerate(landings)]
        async with first.open(tickets[0]), second.open(tickets[1]):
            await push(third, tickets[2])
        await push(third, tickets[3])
        assert [came_by(landing) for landing in landings[2:]] == [{"grpc"}, {"shm"}]
        await asyncio.sleep(0)
        assert receiver.receiving() == 0
        receiver.check()


async def test_what_was_refused_is_counted_by_reason() -> None:
    landing = Landing()
    async with worker() as sender, worker() as receiver:
        ticket = expect(receiver, landing)
        await receiver.fence(ticket.transfer)
        with pytest.raises(Exception, match="not open here"):
            await push(sender, ticket)
        assert receiver.traffic().refused == (("transfer", 1),)
