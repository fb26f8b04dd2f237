"""What a response repeats of its request, as it may come from elsewhere."""

import pytest

from runtime.errors import DataCorrupt
from runtime.services.openai.responses.memo import Memo, unpack_memo


def test_a_memo_of_another_baton_is_read_and_what_is_none_is_an_error_of_ours() -> None:
    memo = Memo(created=7, metadata={"topic": "dogs"})
    assert unpack_memo(memo.pack()) == memo
    assert unpack_memo(b'{"created": 7, "colour": "red"}') == Memo(created=7)
    assert unpack_memo(b"") == Memo()
    for damaged in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        with pytest.raises(DataCorrupt):
            unpack_memo(damaged)
