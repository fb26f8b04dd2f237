"""Whatever arrives: frames and pushes with anything in them are refused by name, counted, and nothing is kept."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batonmesh.v1 import kv_pb2
from runtime.domain.landing import CommitArrived, FrameArrived
from runtime.errors import DataCorrupt
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from tests.kv.test_frames import CODEC, SPEC
from tests.kv.test_grpc_transport import TRANSFER, Landing, Side, expect, frame, raw_push, receiver, sender
from tests.scale import scaled

__all__ = ["receiver", "sender"]  # fixtures

GOOD = CODEC.encode(frame(3))
REASONS = {
    "magic", "version", "header_bytes", "payload_bytes", "checksum", "fingerprint", "layer_group", "layer_groups",
    "first_head", "heads", "dtype", "encoding", "reserved", "valid_tokens", "transfer", "epoch",
}  # fmt: skip
DAMAGED = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda head, tail: GOOD[:head] + tail, st.integers(0, len(GOOD)), st.binary(max_size=80)),
    st.builds(
        lambda at, bits: GOOD[:at] + bytes([GOOD[at] ^ bits]) + GOOD[at + 1 :],
        st.integers(0, len(GOOD) - 1),
        st.integers(1, 255),
    ),
    st.builds(lambda head, field: head + GOOD[len(head) :], st.binary(max_size=HEADER_BYTES), st.none()),
)


@settings(max_examples=scaled(300, 20_000), deadline=None)
@given(data=DAMAGED)
@example(GOOD + b"\0")
@example(b"BKVF")
def test_damaged_frames_are_refused_by_a_field_of_ours(data: bytes) -> None:
    transfers, landing = OpenTransfers(CODEC), Landing()
    transfers.open(TRANSFER, 1, 1, landing)
    if data == GOOD:
        return
    assert not transfers.land(transfers.find(TRANSFER, 1), data, "grpc")
    assert set(transfers.refused) <= REASONS
    assert sum(transfers.refused.values()) == 1


def test_a_frame_that_claims_to_be_huge_takes_no_memory() -> None:
    with pytest.raises(DataCorrupt, match="payload_bytes is 4294967295"):
        FrameCodec(SPEC).decode(GOOD[:60] + b"\xff" * 4 + GOOD[64:])


_ENDS = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda transfer, epoch, frames: kv_pb2.PushRequest(
            transfer=transfer, epoch=epoch, frames=frames
        ).SerializeToString(),
        st.sampled_from((TRANSFER, "xfer-2", "", "x" * 5000)),
        st.sampled_from((1, 2, 2**32 - 1)),
        st.lists(DAMAGED, max_size=3),
    ),
)


@settings(max_examples=scaled(40, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGES, min_size=1, max_size=4))
async def test_whatever_is_pushed_the_next_transfer_lands(receiver: Side, messages: list[bytes]) -> None:
    landing = Landing()
    ticket = expect(receiver, landing)
    async with grpc.aio.insecure_channel(ticket.endpoint) as channel:
        call: Any = channel.stream_stream("/batonmesh.v1.Kv/Push", None, None)(None, timeout=60)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
            await call.done_writing()
            # An answer may be empty bytes, and a call ends only once all of them were read.
            while isinstance(await call.read(), bytes):
                pass
        # A write after the end of a call is told so by grpc.aio itself, whatever the end was.
        ended = (await call.code(), await call.details())
        assert ended[0] in _ENDS or ended[1] == "Internal error from Core", ended
    assert all(not isinstance(event, FrameArrived) or event.frame.index == 3 for event in landing.events)
    await receiver.transport.fence(TRANSFER)
    again = Landing()
    ticket = expect(receiver, again, epoch=9)
    async with raw_push(ticket) as call:
        await call.write(kv_pb2.PushRequest(transfer=TRANSFER, epoch=9, frames=[GOOD]))
        await call.read()
        assert [type(event) for event in again.events] == [FrameArrived]
        receiver.transport.transfers.close(TRANSFER)
    assert CommitArrived not in map(type, again.events)
    assert receiver.transport.receiving() == 0
    assert set(receiver.transport.transfers.refused) <= REASONS
