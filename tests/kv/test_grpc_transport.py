"""Pages between two real servers in one process: what lands, what is refused, and what is noticed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Any

import grpc
import pytest

from batonmesh.v1 import kv_pb2
from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt, LandingEvent, SenderAborted
from runtime.domain.messages import Ticket, TicketPage
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.errors import DeadlineExceeded, EngineFailed, StaleAttempt, Unavailable
from runtime.ids import BootId, PageId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.grpc import GrpcTransport, message_bytes
from runtime.kv.transport.sending import WINDOW_BYTES, GrpcSender
from runtime.services.server import GrpcServer
from tests.kv.test_frames import CODEC, SPEC

TRANSFER = TransferId("xfer-1")


def frame(index: int) -> Frame:
    return Frame(PageId(index.to_bytes(16)), index, 8, index.to_bytes(4) * (SPEC.page_bytes // 4))


class Landing:
    """A sink that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.events: list[LandingEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: LandingEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def wait_for(self, kind: type[LandingEvent]) -> LandingEvent:
        async with asyncio.timeout(10):
            while not (found := [event for event in self.events if isinstance(event, kind)]):
                self._changed.clear()
                await self._changed.wait()
        return found[0]

    def of(self, kind: type[LandingEvent]) -> list[LandingEvent]:
        return [event for event in self.events if isinstance(event, kind)]


class Side:
    """One worker: its server and its transport, with channels that end with it."""

    def __init__(
        self,
        spec: ModelSpec,
        channel: Callable[[str, str, int], grpc.aio.Channel],
        channels: dict[tuple[str, int], grpc.aio.Channel],
        encoding: Encoding,
        dtypes: tuple[str, ...],
    ) -> None:
        self.channels = channels
        self.server = GrpcServer("127.0.0.1", 0, message_bytes=message_bytes(spec))
        self.transport = GrpcTransport(spec, f"127.0.0.1:{self.server.port}", channel, encoding, dtypes)


@asynccontextmanager
async def side(
    spec: ModelSpec = SPEC, encoding: Encoding = Encoding.PLAIN, dtypes: tuple[str, ...] = ()
) -> AsyncIterator[Side]:
    async with AsyncExitStack() as stack:
        channels: dict[tuple[str, int], grpc.aio.Channel] = {}

        def channel(address: str, _role: str, lane: int) -> grpc.aio.Channel:
            if (address, lane) not in channels:
                own_connection = (("grpc.use_local_subchannel_pool", 1),)
                channels[address, lane] = grpc.aio.insecure_channel(address, options=own_connection)
            return channels[address, lane]

        worker = Side(spec, channel, channels, encoding, dtypes)
        worker.server.add(worker.transport.service)
        await stack.enter_async_context(worker.server)
        try:
            yield worker
        finally:
            for each in channels.values():
                await each.close(None)


@pytest.fixture
async def receiver() -> AsyncIterator[Side]:
    async with side() as worker:
        yield worker


@pytest.fixture
async def sender() -> AsyncIterator[Side]:
    async with side() as worker:
        yield worker


def expect(receiver: Side, landing: Landing, epoch: int = 1, remaining_ms: int = 20_000) -> Ticket:
    endpoint = receiver.transport.expect(TRANSFER, epoch, (), landing)
    return Ticket(
        TRANSFER, epoch, BootId("boot-1"), "grpc", endpoint, SPEC.kv_fingerprint, SPEC.dtype, (), remaining_ms
    )


async def test_two_hundred_frames_land_in_order_before_the_commit(sender: Side, receiver: Side) -> None:
    landing = Landing()
    async with sender.transport.open(expect(receiver, landing)) as push:
        for index in range(200):
            await push.send(frame(index))
        await push.commit()
    assert landing.events == [
        *(FrameArrived(TRANSFER, 1, frame(index), "grpc") for index in range(200)),
        CommitArrived(TRANSFER, 1, 200),
    ]
    assert receiver.transport.receiving() == 0


async def test_what_is_written_by_hand_is_what_the_generated_code_writes(sender: Side) -> None:
    frames = [frame(index) for index in range(3)]
    push = GrpcSender(ticket_for("unused:1"), CODEC, [sender.transport._channel("unused:1", "decode", 0)])
    push.outbox.extend(frames)
    message, size = push.message()
    push.close()
    assert size == 3 * SPEC.page_bytes
    generated = kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=[CODEC.encode(each) for each in frames])
    assert message == generated.SerializeToString()


async def test_a_large_transfer_goes_over_two_connections_and_all_of_it_lands() -> None:
    large = replace(SPEC, page_tokens=2048, kv_fingerprint="ef" * 16)
    pages = tuple(TicketPage(index, PageId(index.to_bytes(16)), 2048) for index in range(60))
    landing = Landing()
    async with side(large) as source, side(large) as target:
        endpoint = target.transport.expect(TRANSFER, 1, pages, landing)
        async with source.transport.open(replace(ticket_for(endpoint), pages=pages)) as push:
            for page in pages:
                await push.send(Frame(page.id, page.index, 2048, page.index.to_bytes(1) * large.page_bytes))
            await push.commit()
        assert set(map(itemgetter(1), source.channels)) == {0, 1}
    arrived = [event.frame for event in landing.events if isinstance(event, FrameArrived)]
    assert sorted(each.index for each in arrived) == list(range(60))
    assert all(each.payload == each.index.to_bytes(1) * large.page_bytes for each in arrived)
    assert landing.events[-1] == CommitArrived(TRANSFER, 1, 60)


async def test_a_corrupt_frame_is_told_and_the_others_land(sender: Side, receiver: Side) -> None:
    landing = Landing()
    ticket = expect(receiver, landing)
    damaged = bytearray(CODEC.encode(frame(1)))
    damaged[200] ^= 1
    frames = [CODEC.encode(frame(0)), bytes(damaged), CODEC.encode(frame(2))]
    async with raw_push(ticket) as call:
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=frames))
        assert await call.read() == kv_pb2.PushResponse(frames=3, corrupt=1)
    assert [type(event) for event in landing.events[:3]] == [FrameArrived, FrameCorrupt, FrameArrived]
    (corrupt,) = landing.of(FrameCorrupt)
    assert isinstance(corrupt, FrameCorrupt)
    assert "checksum" in corrupt.reason


async def test_a_frame_larger_than_a_page_is_refused(receiver: Side) -> None:
    landing = Landing()
    ticket = expect(receiver, landing)
    roomy = FrameCodec(replace(SPEC, page_tokens=16))
    large = roomy.encode(Frame(PageId(bytes(16)), 0, 16, bytes(2 * SPEC.page_bytes)))
    async with raw_push(ticket) as call:
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=[large]))
        assert await call.read() == kv_pb2.PushResponse(frames=1, corrupt=1)
    assert landing.of(FrameArrived) == []


async def test_a_page_that_is_larger_than_usual_messages_still_lands() -> None:
    large = replace(SPEC, page_tokens=65_536, kv_fingerprint="cd" * 16)
    page = Frame(PageId(bytes(16)), 0, large.page_tokens, bytes(large.page_bytes))
    landing = Landing()
    async with side(large) as source, side(large) as target, source.transport.open(expect(target, landing)) as push:
        await push.send(page)
        await push.commit()
    assert landing.events == [FrameArrived(TRANSFER, 1, page, "grpc"), CommitArrived(TRANSFER, 1, 1)]


async def test_a_push_under_an_older_epoch_is_refused_and_the_connection_stays(sender: Side, receiver: Side) -> None:
    landing = Landing()
    ticket = expect(receiver, landing, epoch=2)
    with pytest.raises(StaleAttempt, match="epoch 2, not 1"):
        await push_one(sender, replace(ticket, epoch=1))
    assert landing.events == []
    assert set(receiver.transport.transfers.refused) == {"epoch"}
    await push_one(sender, ticket)
    assert [type(event) for event in landing.events] == [FrameArrived, CommitArrived]


@pytest.mark.parametrize("ending", ["never opened", "fenced", "committed"])
async def test_a_push_for_a_transfer_that_is_not_open_is_refused(sender: Side, receiver: Side, ending: str) -> None:
    landing = Landing()
    ticket = replace(expect(receiver, landing), transfer=TransferId("xfer-0" if ending == "never opened" else TRANSFER))
    if ending == "fenced":
        await receiver.transport.fence(TRANSFER)
    if ending == "committed":
        await push_one(sender, ticket)
    known = list(landing.events)
    with pytest.raises(StaleAttempt, match="not open here"):
        await push_one(sender, ticket)
    assert landing.events == known


async def test_nothing_lands_after_the_fence_not_even_of_the_message_that_is_being_read(receiver: Side) -> None:
    class FencesAtOnce(Landing):
        def __call__(self, event: LandingEvent) -> None:
            super().__call__(event)
            receiver.transport.transfers.close(TRANSFER)

    landing = FencesAtOnce()
    ticket = expect(receiver, landing)
    async with raw_push(ticket) as call:
        frames = [CODEC.encode(frame(index)) for index in range(3)]
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=frames))
        await call.read()
    assert landing.events == [FrameArrived(TRANSFER, 1, frame(0), "grpc")]


async def test_an_abort_midway_reaches_the_landing_and_what_landed_stays(sender: Side, receiver: Side) -> None:
    landing = Landing()

    async def prefill() -> None:
        async with sender.transport.open(expect(receiver, landing)) as push:
            await push.send(frame(0))
            await landing.wait_for(FrameArrived)
            raise EngineFailed("out of memory")

    with pytest.raises(EngineFailed):
        await prefill()
    assert landing.events == [
        FrameArrived(TRANSFER, 1, frame(0), "grpc"),
        SenderAborted(TRANSFER, 1, "the sender gave up"),
    ]
    assert receiver.transport.receiving() == 0


async def test_a_sender_that_vanishes_is_noticed_at_once(receiver: Side) -> None:
    landing = Landing()
    ticket = expect(receiver, landing)
    async with raw_push(ticket) as call:
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1, frames=[CODEC.encode(frame(0))]))
        await call.read()
    aborted = await landing.wait_for(SenderAborted)
    assert aborted == SenderAborted(TRANSFER, 1, "the sender went away before its commit")
    assert receiver.transport.receiving() == 0


async def test_a_receiver_that_is_gone_is_unavailable_promptly(sender: Side) -> None:
    async with side() as gone:
        ticket = expect(gone, Landing())
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable):
            await push_one(sender, ticket)


async def test_a_receiver_that_stops_midway_is_unavailable_promptly(sender: Side) -> None:
    async with side() as leaving:
        landing = Landing()
        ticket = expect(leaving, landing)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await push_until_it_fails(sender, leaving, ticket, landing)
        await landing.wait_for(SenderAborted)


async def push_until_it_fails(sender: Side, leaving: Side, ticket: Ticket, landing: Landing) -> None:
    async with sender.transport.open(ticket) as push:
        await push.send(frame(0))
        await landing.wait_for(FrameArrived)
        await leaving.server.__aexit__(None, None, None)
        while True:
            await push.send(frame(1))


async def test_the_deadline_of_the_ticket_ends_a_push_whose_receiver_hangs(sender: Side) -> None:
    async with deaf_receiver() as endpoint:
        ticket = replace(ticket_for(endpoint), remaining_ms=300)
        with pytest.raises(DeadlineExceeded):
            await push_one(sender, ticket)


async def test_a_receiver_that_does_not_acknowledge_bounds_what_the_sender_has_in_flight(sender: Side) -> None:
    large = replace(SPEC, page_tokens=8192, kv_fingerprint="ab" * 16)
    worker = GrpcTransport(large, "unused:1", sender.transport._channel)
    page = Frame(PageId(bytes(16)), 0, 8192, bytes(large.page_bytes))
    sent = 0

    async def push_for_ever(ticket: Ticket) -> None:
        nonlocal sent
        async with worker.open(ticket) as push:
            while True:
                await push.send(page)
                sent += len(page.payload)

    async with deaf_receiver(reads=True) as endpoint:
        with pytest.raises(DeadlineExceeded):
            await push_for_ever(replace(ticket_for(endpoint), remaining_ms=1500))
    assert WINDOW_BYTES - 2 * large.page_bytes < sent <= WINDOW_BYTES


async def test_a_message_that_is_no_message_is_refused_by_name(receiver: Side) -> None:
    ticket = expect(receiver, Landing())
    async with grpc.aio.insecure_channel(ticket.endpoint) as channel:
        call: Any = channel.stream_stream("/batonmesh.v1.Kv/Push", None, None)(None, timeout=5)
        await call.write(b"\x1a\xff\xff\xff\xff\x0f")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cut off" in (refused.value.details() or "")


async def test_a_push_is_for_one_transfer(receiver: Side) -> None:
    landing, other = Landing(), Landing()
    ticket = expect(receiver, landing)
    receiver.transport.expect(TransferId("xfer-2"), 1, (), other)
    async with raw_push(ticket) as call:
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=1))
        await call.read()
        await call.write(kv_pb2.PushRequest(transfer="xfer-2", epoch=1))
        with pytest.raises(grpc.aio.AioRpcError, match="one transfer"):
            await call.read()
    assert [type(event) for event in landing.events] == [SenderAborted]
    assert other.events == []


async def push_one(sender: Side, ticket: Ticket) -> None:
    async with sender.transport.open(ticket) as push:
        await push.send(frame(0))
        await push.commit()


@asynccontextmanager
async def raw_push(ticket: Ticket) -> AsyncIterator[Any]:
    """A push as another vendor would write it."""
    async with grpc.aio.insecure_channel(ticket.endpoint) as channel:
        call: Any = channel.stream_stream(
            "/batonmesh.v1.Kv/Push", kv_pb2.PushRequest.SerializeToString, kv_pb2.PushResponse.FromString
        )(None, timeout=10)
        try:
            yield call
        finally:
            call.cancel()


@asynccontextmanager
async def deaf_receiver(*, reads: bool = False) -> AsyncIterator[str]:
    """A Kv service that never acknowledges; yields its endpoint."""

    async def push(requests: AsyncIterator[bytes], _context: object) -> None:
        if reads:
            async for _ in requests:
                pass
        await asyncio.Event().wait()

    handler = grpc.stream_stream_rpc_method_handler(push)
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("batonmesh.v1.Kv", {"Push": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def ticket_for(endpoint: str) -> Ticket:
    return Ticket(TRANSFER, 1, BootId("b"), "grpc", endpoint, SPEC.kv_fingerprint, SPEC.dtype, (), 10_000)
