"""Whatever arrives: frames and pushes with anything in them are refused by name, counted, and nothing is kept."""

import asyncio
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batonmesh.v1 import kv_pb2
from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt
from runtime.domain.spec import Kind, LayerGroup
from runtime.domain.steps import Encoding, Frame
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.encodings import compress
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.parts import cut_heads, split_groups
from runtime.kv.transport.arrivals import OpenTransfers
from tests.kv.test_frames import CODEC, SPEC, rewritten
from tests.kv.test_grpc_transport import TRANSFER, Landing, Side, expect, frame, raw_push, receiver, sender
from tests.scale import scaled

__all__ = ["receiver", "sender"]  # fixtures

GOOD = CODEC.encode(frame(3))
REASONS = {
    "magic", "version", "header_bytes", "payload_bytes", "checksum", "fingerprint", "layer_group", "layer_groups",
    "first_head", "heads", "dtype", "encoding", "kind", "reserved", "valid_tokens", "page", "scale", "transfer",
    "epoch", "message",
}  # fmt: skip
# A model of every kind of group, whose receiver takes what can be taken; and good frames of it in every form.
WIDE = replace(
    SPEC,
    dtype="float32",
    groups=(LayerGroup((0, 2), 3, 2), LayerGroup((1,), 2, 4, window=16), LayerGroup((3,), 1, 6, Kind.LATENT)),
)
OPEN_PAGES = 2


def good_parts() -> list[bytes]:
    whole = Frame(PageId(bytes(16)), 1, 5, (bytes(range(1, 61)) * 20)[: WIDE.token_bytes * 5])
    frames = []
    for encoding, dtype in ((Encoding.PLAIN, "float32"), (Encoding.FP8, "float32"), (Encoding.PLAIN, "bfloat16")):
        here = replace(WIDE, dtype=dtype)
        page = replace(whole, payload=bytes(whole.payload)[: here.token_bytes * 5])
        frames += [FrameCodec(here).encode(compress(part, here, encoding)) for part in split_groups(page, here)]
    return [*frames, FrameCodec(WIDE).encode(cut_heads(next(split_groups(whole, WIDE)), WIDE, range(1, 3)))]


PARTS = good_parts()
# Offset, form and limit of each field of the header that is not the checksum.
FIELDS = (
    (0, "<4s", None), (4, "<H", 16), (6, "<H", 16), (8, "<16s", None), (24, "<16s", None), (40, "<I", 32),
    (44, "<I", 32), (48, "<H", 16), (50, "<H", 16), (52, "<H", 16), (54, "<H", 16), (56, "<B", 8), (57, "<B", 8),
    (58, "<B", 8), (59, "<B", 8), (60, "<I", 32),
)  # fmt: skip


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """A frame whose checksum is right and whose fields say anything, near what is possible or far from it."""
    data = draw(st.sampled_from(PARTS))
    for offset, form, bits in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4)):
        if bits is None:
            value: object = draw(st.binary(min_size=struct.calcsize(form), max_size=struct.calcsize(form)))
        else:
            value = draw(st.integers(0, 8) | st.integers(0, 2**bits - 1))
        data = rewritten(data, offset, form, value)
    if draw(st.booleans()):
        data = data[:HEADER_BYTES] + draw(st.binary(max_size=600))
        data = rewritten(rewritten(data, 60, "<I", len(data) - HEADER_BYTES), 59, "<B", 0)
    return data


@settings(max_examples=scaled(300, 20_000), deadline=None)
@given(frames=st.lists(st.one_of(forged(), st.sampled_from(PARTS)), min_size=1, max_size=12))
def test_whatever_a_frame_says_of_itself_it_is_refused_by_a_field_or_is_of_this_model(frames: list[bytes]) -> None:
    transfers, landing = OpenTransfers(FrameCodec(WIDE, Encoding.FP8, ("bfloat16", "float16"))), Landing()
    transfers.open(TRANSFER, 1, OPEN_PAGES, landing)
    found = transfers.find(TRANSFER, 1)
    good = [transfers.land(found, data, "grpc") for data in frames]
    assert set(transfers.refused) <= REASONS
    assert sum(transfers.refused.values()) == good.count(False) == len(landing.of(FrameCorrupt))
    assert len(found.parts) <= OPEN_PAGES
    for event in landing.of(FrameArrived):
        assert isinstance(event, FrameArrived)
        page = event.frame
        assert (page.part, page.dtype, page.encoding) == (None, None, Encoding.PLAIN)
        assert len(page.payload) == page.valid_tokens * WIDE.token_bytes


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_a_byte_that_changed_anywhere_in_a_part_is_found(number: int) -> None:
    transfers, landing = OpenTransfers(FrameCodec(WIDE, Encoding.FP8, ("bfloat16",))), Landing()
    transfers.open(TRANSFER, 1, OPEN_PAGES, landing)
    found, data = transfers.find(TRANSFER, 1), bytearray(PARTS[number])
    for place in range(len(data)):
        data[place] ^= 0x40
        assert not transfers.land(found, bytes(data), "grpc")
        data[place] ^= 0x40
    assert len(found.parts) == 0, "nothing is kept of what is refused"
    assert transfers.land(found, bytes(data), "grpc")


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
