"""Which bucket runs what: the least work that does, every token once, and nothing that was not asked for."""

import pytest

from runtime.domain.pages import pages_for
from runtime.domain.steps import Chunk
from runtime.engine.neuron.buckets import Bucket, Buckets
from runtime.errors import EngineFailed
from runtime.ids import SequenceId

PAGE = 8
BUCKETS = Buckets((Bucket(64, 0), Bucket(64, 4), Bucket(16, 4), Bucket(1, 20), Bucket(32, 20)), PAGE)


@pytest.mark.parametrize(
    ("tokens", "past", "expected"),
    [
        (1, 0, Bucket(1, 20)),
        (10, 0, Bucket(16, 4)),
        (64, 0, Bucket(64, 0)),
        (200, 0, Bucket(64, 0)),
        (64, 1, Bucket(64, 4)),
        (64, 32, Bucket(64, 4)),
        (64, 33, Bucket(32, 20)),
        (2, 160, Bucket(32, 20)),
        (1, 160, Bucket(1, 20)),
    ],
)
def test_the_least_work_that_does_is_picked(tokens: int, past: int, expected: Bucket) -> None:
    assert BUCKETS.pick(tokens, past) == expected


@pytest.mark.parametrize("start", [0, 1, 7, 8, 31, 32, 100, 159])
def test_every_token_of_a_chunk_runs_once_and_fits_its_bucket(start: int) -> None:
    for end in range(start + 1, BUCKETS.max_tokens + 1):
        table = tuple(range(pages_for(end, PAGE)))
        chunk = Chunk(SequenceId("a"), tuple(range(start, end)), start, table, sample=True)
        ran: list[int] = []
        for piece in BUCKETS.pieces(chunk):
            assert piece.start == start + len(ran)
            assert 0 < len(piece.tokens) <= piece.bucket.tokens
            assert pages_for(piece.start, PAGE) <= piece.bucket.past_pages
            assert len(piece.table) == pages_for(piece.start + len(piece.tokens), PAGE)
            ran += piece.tokens
        assert ran == list(range(start, end))


def test_the_longest_context_is_the_longest_past() -> None:
    assert BUCKETS.max_tokens == 20 * PAGE


def test_what_no_bucket_reaches_is_named_with_all_that_are_there() -> None:
    with pytest.raises(EngineFailed, match=r"no bucket holds 1 tokens after 21 pages; .* 32 tokens \+ 20 pages"):
        BUCKETS.pick(1, 161)
