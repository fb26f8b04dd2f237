"""Errors keep their kind, field and patience across the wire; what others say is understood by its status."""

import grpc
import pytest
from hypothesis import given

from batonmesh.v1 import common_pb2
from runtime.errors import BatonError, DeadlineExceeded, EngineFailed, Internal, NotSupported, Unavailable
from runtime.wire.errors import from_status, pack_error, to_metadata, unpack_error
from tests.wire.words import CODES, ERRORS, same


def test_every_error_there_is_has_a_code_here_and_a_status_that_grpc_knows() -> None:
    pending, kinds = [BatonError], set()
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        kinds.add(kind.status.code)
        assert kind.status.grpc in grpc.StatusCode.__members__
    assert kinds == set(CODES)


@given(ERRORS)
def test_an_error_in_a_message_comes_back(error: BatonError) -> None:
    assert same(unpack_error(common_pb2.Error.FromString(pack_error(error).SerializeToString())), error)


@given(ERRORS)
def test_an_error_as_status_and_metadata_comes_back(error: BatonError) -> None:
    assert same(from_status(error.status.grpc, error.message, to_metadata(error)), error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("UNIMPLEMENTED", NotSupported),
        ("UNKNOWN", Internal),
    ],
)
def test_a_status_that_is_not_ours_is_understood_by_its_name(status: str, kind: type[BatonError]) -> None:
    assert type(from_status(status, "said by a proxy", ())) is kind


def test_metadata_that_makes_no_sense_is_left_alone() -> None:
    error = from_status(
        "INTERNAL", "x", [("baton-error-code", "engine"), ("baton-retry-after-ms", "soon"), ("b", b"1")]
    )
    assert type(error) is EngineFailed
    assert error.retry_after_ms is None


def test_a_field_that_headers_cannot_carry_is_spelled_in_what_they_can() -> None:
    metadata = dict(to_metadata(BatonError("x", field="prömpt\n" + "y" * 9000)))
    assert metadata["baton-error-field"].startswith("pr?mpt?yyy")
    assert len(metadata["baton-error-field"]) <= 256
