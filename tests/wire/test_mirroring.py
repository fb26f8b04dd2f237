"""Calls for pages arrive as they were made, and those that make no sense are refused by the field."""

from collections.abc import Callable

import pytest
from hypothesis import given

from batonmesh.v1 import mirror_pb2 as pb
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.errors import InvalidArgument
from runtime.wire.mirroring import (
    pack_fetch_call,
    pack_fetched,
    pack_keep_call,
    pack_kept,
    unpack_fetch_call,
    unpack_fetched,
    unpack_keep_call,
    unpack_kept,
)
from tests.wire import words


@given(words.KEEP_CALLS)
def test_calls_to_keep_pages(call: KeepCall) -> None:
    assert unpack_keep_call(pb.KeepRequest.FromString(pack_keep_call(call).SerializeToString())) == call


@given(words.HELD)
def test_what_is_kept(kept: Kept) -> None:
    assert unpack_kept(pb.KeepResponse.FromString(pack_kept(kept).SerializeToString())) == kept


@given(words.FETCH_CALLS)
def test_calls_to_fetch_pages(call: FetchCall) -> None:
    assert unpack_fetch_call(pb.FetchRequest.FromString(pack_fetch_call(call).SerializeToString())) == call


@given(words.FETCHED)
def test_what_was_fetched(fetched: Fetched) -> None:
    assert unpack_fetched(pb.FetchResponse.FromString(pack_fetched(fetched).SerializeToString())) == fetched


def spoilt(spoil: Callable[[pb.KeepRequest], object]) -> pb.KeepRequest:
    source = pb.PageHolder(worker="w", boot="b", address="a:1", role="decode")
    request = pb.KeepRequest(tenant="t", tokens=[1, 2], source=source, most_pages=1, remaining_ms=1)
    spoil(request)
    return request


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda request: request.ClearField("tenant"), "tenant"),
        (lambda request: request.tokens.pop(), "tokens"),
        (lambda request: request.source.ClearField("address"), "source.address"),
        (lambda request: setattr(request.source, "role", "gateway"), "source.role"),
        (lambda request: request.ClearField("most_pages"), "most_pages"),
        (lambda request: request.ClearField("remaining_ms"), "remaining_ms"),
        (lambda request: setattr(request, "session", "s" * 65), "session"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_by_its_field(
    spoil: Callable[[pb.KeepRequest], object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_keep_call(spoilt(spoil))
    assert refused.value.field == field
