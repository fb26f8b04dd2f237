"""The list of what a receiver must bear: each is refused with its reason and counted, takes nothing, and the connection
stays up for what is good. By gRPC as another vendor writes it, and through shared memory."""

import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from batonmesh.v1 import kv_pb2, kv_pb2_grpc
from runtime.domain.landing import FrameArrived, FrameCorrupt
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.shm import words as w
from tests.kv.shm.conftest import SLOTS
from tests.kv.shm.conftest import Side as ShmSide
from tests.kv.test_frames import CODEC, SPEC, rewritten
from tests.kv.test_grpc_transport import TRANSFER, Landing, Side, expect, frame, receiver

__all__ = ["receiver"]  # a fixture
GOOD = CODEC.encode(frame(3))


def field(offset: int, form: str, value: object) -> bytes:
    """A frame that says something else there, with a checksum that fits."""
    return rewritten(GOOD, offset, form, value)


def flipped(place: int) -> bytes:
    return GOOD[:place] + bytes([GOOD[place] ^ 1]) + GOOD[place + 1 :]


# Each with the reason that it is counted by.
BAD: dict[str, tuple[bytes, str]] = {
    "magic": (field(0, "<4s", b"BKVE"), "magic"),
    "version": (field(4, "<H", 2), "version"),
    "fingerprint": (field(8, "<16s", bytes(16)), "fingerprint"),
    "no tokens": (field(44, "<I", 0), "valid_tokens"),
    "more tokens than a page has": (field(44, "<I", SPEC.page_tokens + 1), "valid_tokens"),
    "fewer tokens than the payload has": (field(44, "<I", 1), "payload_bytes"),
    "another group": (field(48, "<H", 1), "layer_group"),
    "more groups": (field(50, "<H", 2), "layer_groups"),
    "a head that is not there": (field(52, "<H", SPEC.kv_heads), "first_head"),
    "more heads than there are": (field(54, "<H", SPEC.kv_heads + 1), "heads"),
    "heads beyond the last": (field(52, "<H", 1), "heads"),
    "no heads": (field(54, "<H", 0), "heads"),
    "another data type": (field(56, "<B", 2), "dtype"),
    "an encoding nobody asked for": (field(57, "<B", 1), "encoding"),
    "another kind": (field(58, "<B", 1), "kind"),
    "a payload that is not there": (field(60, "<I", 2**32 - 1), "payload_bytes"),
    "checksum": (GOOD[:64] + struct.pack("<Q", 7) + GOOD[72:], "checksum"),
    "a byte of the header": (flipped(45), "checksum"),
    "the last byte": (flipped(len(GOOD) - 1), "checksum"),
    "cut short": (GOOD[:50], "header_bytes"),
    "nothing": (b"", "header_bytes"),
}


@pytest.fixture
async def memory() -> AsyncIterator[ShmSide]:
    side = ShmSide()
    try:
        yield side
        side.receiver.staging.check()
    finally:
        side.close()


@pytest.fixture
async def channel(receiver: Side) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.server.port}") as channel:
        yield channel


def push_on(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401 - a call with bytes in
    return channel.stream_stream("/batonmesh.v1.Kv/Push", None, kv_pb2.PushResponse.FromString)(None, timeout=10)


def message(*frames: bytes, epoch: int = 1) -> bytes:
    return kv_pb2.PushRequest(transfer=TRANSFER, epoch=epoch, frames=frames).SerializeToString()


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_frame_by_grpc_is_refused_and_the_next_on_the_same_call_lands(
    receiver: Side, channel: grpc.aio.Channel, bad: str
) -> None:
    data, reason = BAD[bad]
    landing = Landing()
    expect(receiver, landing)
    call = push_on(channel)
    await call.write(message(data))
    assert await call.read() == kv_pb2.PushResponse(frames=1, corrupt=1)
    (told,) = landing.events
    assert isinstance(told, FrameCorrupt)
    assert reason in told.reason
    transfers = receiver.transport.transfers
    assert transfers.refused == {reason: 1}
    assert len(transfers.find(TRANSFER, 1).parts) == 0, "nothing is kept of it"
    await call.write(message(GOOD))
    assert await call.read() == kv_pb2.PushResponse(frames=2, corrupt=1)
    assert landing.events[1:] == [FrameArrived(TRANSFER, 1, frame(3), "grpc")]
    call.cancel()


@pytest.mark.parametrize("bad", [name for name, (data, _) in BAD.items() if len(data) >= 72])
async def test_a_bad_frame_through_memory_is_refused_and_the_next_in_the_same_slot_lands(
    memory: ShmSide, bad: str
) -> None:
    data, reason = BAD[bad]
    landing, raw = memory.expect(TRANSFER), await memory.raw()
    granted = await raw.ask(w.Open(1, 1, TRANSFER))
    assert isinstance(granted, w.Granted)
    slot = granted.slots[0]
    for number, content in enumerate((data, GOOD)):
        memory.receiver.arena.slot(slot)[: len(content)] = content
        assert await raw.ask(w.Placed(1, slot, len(content))) == w.Taken(1, slot)
        assert [type(event) for event in landing.events] == [FrameCorrupt, FrameArrived][: number + 1]
    assert memory.transfers.refused == {reason: 1}
    assert await raw.ask(w.Commit(1, 1)) == w.Committed(1)
    assert memory.counts() == (SLOTS, 0, 0)


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def of_epoch(number: int) -> bytes:
    """A push whose epoch is written out in full, however large."""
    head = kv_pb2.PushRequest(transfer=TRANSFER).SerializeToString()
    epoch = bytes([kv_pb2.PushRequest.EPOCH_FIELD_NUMBER << 3]) + varint(number)
    return head + epoch + kv_pb2.PushRequest(frames=[GOOD]).SerializeToString()


def claiming(length: int) -> bytes:
    """A push that says that a frame of so many bytes follows."""
    return message() + bytes([kv_pb2.PushRequest.FRAMES_FIELD_NUMBER << 3 | 2]) + varint(length) + GOOD


STALE, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("data", "code", "told", "counted"),
    [
        (message(GOOD, epoch=2), STALE, "epoch 1, not 2", "epoch"),
        (of_epoch(2**63 + 1), STALE, f"not {2**63 + 1}", "epoch"),
        (of_epoch(2**32 + 1), STALE, f"not {2**32 + 1}", "epoch"),
        (kv_pb2.PushRequest(transfer="nobody's", epoch=1).SerializeToString(), STALE, "not open here", "transfer"),
        (b"", STALE, "not open here", "transfer"),
        (claiming(2**63), INVALID, "cut off", "message"),
        (claiming(2**32), INVALID, "cut off", "message"),
        (b"\xff" * 40, INVALID, "", "message"),
    ],
    ids=["another epoch", "2^63 epochs", "an epoch that wraps", "no ticket", "nothing", "2^63 bytes", "2^32 bytes",
         "no message"],
)  # fmt: skip
async def test_a_push_that_may_not_be_is_refused_by_its_reason_and_the_next_on_the_connection_lands(
    receiver: Side, channel: grpc.aio.Channel, data: bytes, code: grpc.StatusCode, told: str, counted: str
) -> None:
    landing = Landing()
    expect(receiver, landing)
    call = push_on(channel)
    await call.write(data)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is code
    assert told in (refused.value.details() or "")
    assert landing.events == []
    assert receiver.transport.transfers.refused == {counted: 1}
    again = push_on(channel)
    await again.write(message(GOOD))
    assert await again.read() == kv_pb2.PushResponse(frames=1)
    assert landing.events == [FrameArrived(TRANSFER, 1, frame(3), "grpc")]
    again.cancel()


@pytest.mark.parametrize("call", ["Commit", "Abort"])
async def test_the_end_of_what_is_not_open_is_refused_and_counted(
    receiver: Side, channel: grpc.aio.Channel, call: str
) -> None:
    landing, stub = Landing(), kv_pb2_grpc.KvStub(channel)
    expect(receiver, landing)
    ends: dict[str, Callable[[str, int], Any]] = {
        "Commit": lambda transfer, epoch: stub.Commit(kv_pb2.CommitRequest(transfer=transfer, epoch=epoch), timeout=5),
        "Abort": lambda transfer, epoch: stub.Abort(kv_pb2.AbortRequest(transfer=transfer, epoch=epoch), timeout=5),
    }
    for transfer, epoch in (("nobody's", 1), (TRANSFER, 2)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ends[call](transfer, epoch)
        assert refused.value.code() is STALE
    assert landing.events == []
    assert receiver.transport.transfers.refused == {"transfer": 1, "epoch": 1}
    assert receiver.transport.receiving() == 1


async def test_a_commit_that_claims_2_to_63_frames_completes_nothing(receiver: Side, channel: grpc.aio.Channel) -> None:
    """Protobuf keeps the lower half of such a number; what counts is which pages are here."""
    landing = Landing()
    expect(receiver, landing)
    head = kv_pb2.CommitRequest(transfer=TRANSFER, epoch=1).SerializeToString()
    claim = bytes([kv_pb2.CommitRequest.FRAMES_FIELD_NUMBER << 3]) + varint(2**63)
    commit: Any = channel.unary_unary("/batonmesh.v1.Kv/Commit", None, kv_pb2.CommitResponse.FromString)
    await commit(head + claim, timeout=5)
    assert [type(event).__name__ for event in landing.events] == ["CommitArrived"]
    assert receiver.transport.receiving() == 0


def test_a_page_at_the_place_2_to_32_takes_no_more_than_any_other() -> None:
    wide = FrameCodec(SPEC).decode(field(40, "<I", 2**32 - 1))
    assert (wide.index, len(wide.payload)) == (2**32 - 1, SPEC.page_bytes)
