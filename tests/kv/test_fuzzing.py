"""The fuzzing of what takes bytes from elsewhere: seconds of it, or ten minutes."""

import logging

import pytest

from tests.kv.fuzzing import corpus, fuzz
from tests.scale import scaled


@pytest.mark.timeout(1800)
def test_nothing_is_found_by_changing_what_is_known() -> None:
    try:
        assert fuzz(scaled(2.0, 600.0)) > 0
    finally:
        logging.disable(logging.NOTSET)


def test_the_corpus_is_small() -> None:
    known = [*corpus("frames"), *corpus("pushes"), *corpus("words")]
    assert len(known) > 30
    assert sum(map(len, known)) < 20_000
