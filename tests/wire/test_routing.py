"""What a placement costs arrives as it was said; what this version does not know is refused by its field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batonmesh.v1 import mesh_pb2
from runtime.domain.routing import Estimate, Explained, Reason
from runtime.errors import InvalidArgument
from runtime.ids import WorkerId
from runtime.wire.routing import pack_explained, unpack_explained
from tests.wire import words

MS = st.floats(0, 2**60, width=32)
WORKERS = words.NAMES.map(WorkerId)
COSTS = st.builds(
    Estimate,
    WORKERS, st.none() | WORKERS, words.U32, words.U32, MS, MS, MS, MS, MS, MS, MS,
    st.sampled_from(["", "host", "cold"]),
)  # fmt: skip
EXPLAINED = st.builds(Explained, st.none() | WORKERS, st.sampled_from(Reason), st.lists(COSTS, max_size=4).map(tuple))


@given(EXPLAINED)
def test_explanations(explained: Explained) -> None:
    sent = pack_explained(7, explained).SerializeToString()
    message = mesh_pb2.ExplainRouteResponse.FromString(sent)
    assert message.prompt_tokens == 7
    assert unpack_explained(message) == explained


def test_a_reason_of_a_newer_gateway_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_explained(mesh_pb2.ExplainRouteResponse(reason="whim"))
    assert refused.value.field == "reason"
