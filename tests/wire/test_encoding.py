"""The reader of protobuf's encoding agrees with protobuf, and finds the text that is not text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batonmesh.v1 import common_pb2, inference_pb2, kv_pb2
from runtime.errors import InvalidArgument
from runtime.wire.encoding import bytes_field_head, read_fields, unreadable_text


@given(st.text(max_size=9), st.integers(0, 2**32 - 1), st.lists(st.binary(max_size=400), max_size=4))
def test_it_reads_what_protobuf_writes(transfer: str, epoch: int, frames: list[bytes]) -> None:
    data = kv_pb2.PushRequest(transfer=transfer, epoch=epoch, frames=frames).SerializeToString()
    read = list(read_fields(memoryview(data)))
    assert [bytes(value) for number, value in read if number == 3 and not isinstance(value, int)] == frames
    assert dict(read).get(2, 0) == epoch
    assert bytes(dict(read).get(1, b"")).decode() == transfer


@given(st.lists(st.binary(max_size=400), max_size=4))
def test_protobuf_reads_what_it_writes(frames: list[bytes]) -> None:
    data = b"".join(bytes_field_head(3, len(frame)) + frame for frame in frames)
    assert list(kv_pb2.PushRequest.FromString(data).frames) == frames


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        assert all(number >= 0 for number, _ in read_fields(memoryview(data)))


def test_a_length_beyond_the_end_is_refused_before_anything_is_taken() -> None:
    with pytest.raises(InvalidArgument, match="1099511627776 bytes, 1 are left"):
        list(read_fields(memoryview(bytes_field_head(3, 2**40) + b"x")))


def test_text_that_is_not_utf8_is_found_by_its_path() -> None:
    kind = inference_pb2.GenerateRequest.DESCRIPTOR
    messages = [inference_pb2.ChatMessage(role="user", content=content) for content in ("fine", "QQQQ")]
    request = inference_pb2.GenerateRequest(
        model="m",
        prompt=inference_pb2.Prompt(chat=inference_pb2.Chat(messages=messages)),
        sampling=common_pb2.Sampling(stop=["WWWW"]),
        deadline_ms=5,
    )
    data = request.SerializeToString()
    assert unreadable_text(memoryview(data), kind) is None
    assert unreadable_text(memoryview(data.replace(b"QQQQ", b"\xc3QQQ")), kind) == "prompt.chat.messages.content"
    assert unreadable_text(memoryview(data.replace(b"WWWW", b"WWW\xff")), kind) == "sampling.stop"
