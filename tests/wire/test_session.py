"""What a request for a session may say before any store is asked."""

from collections.abc import Callable

import pytest

from runtime.errors import InvalidArgument
from runtime.wire import session as wire


@pytest.mark.parametrize(
    ("unpack", "field"),
    [(wire.unpack_session_id, "session"), (wire.unpack_turn_id, "turn"), (wire.unpack_branch, "branch")],
)
def test_a_name_that_no_store_can_look_for_is_refused_by_its_field(unpack: Callable[[str], str], field: str) -> None:
    """PostgreSQL would fail the statement, which is an error of ours and no answer to a client."""
    with pytest.raises(InvalidArgument) as refused:
        unpack("a\0b")
    assert refused.value.field == field
