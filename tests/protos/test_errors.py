"""The thin client knows every error that a mesh can tell, though it shares no code with the mesh."""

import grpc
import pytest
from hypothesis import given

import batonmesh
from batonmesh.errors import from_status
from runtime.errors import BatonError
from runtime.wire.errors import to_metadata
from tests.wire.words import ERRORS


@given(ERRORS)
def test_an_error_of_the_mesh_arrives_with_its_code_field_and_patience(error: BatonError) -> None:
    told = from_status(grpc.StatusCode[error.status.grpc], error.message, to_metadata(error))
    assert (told.code, told.field) == (error.status.code, error.field)
    assert told.retry_after == (None if error.retry_after_ms is None else error.retry_after_ms / 1000)
    assert told.retryable == error.status.retryable
    assert told.message == (error.message or error.status.grpc)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, batonmesh.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, batonmesh.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, batonmesh.ResourceExhausted),
        (grpc.StatusCode.UNKNOWN, batonmesh.Internal),
    ],
)
def test_an_error_that_is_not_the_meshs_is_understood_by_its_status(
    status: grpc.StatusCode, kind: type[batonmesh.BatonError]
) -> None:
    assert type(from_status(status, "said by a proxy", None)) is kind


def test_a_code_of_a_newer_mesh_is_kept_and_understood_by_its_status() -> None:
    error = from_status(grpc.StatusCode.NOT_FOUND, "no such session", [("baton-error-code", "no_session")])
    assert type(error) is batonmesh.NotFound
    assert error.code == "no_session"
