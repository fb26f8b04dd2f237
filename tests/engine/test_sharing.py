"""Which rows go through the pages together that their block tables begin with."""

import numpy as np
import pytest

from runtime.engine.sharing import _TOGETHER, runs_of


def shared(tables: list[list[int]]) -> tuple[list[int], list[tuple[int, int, int]]]:
    return runs_of(np.array(tables))


def test_rows_that_share_nothing_keep_their_order() -> None:
    assert shared([[3, 1], [2, 1], [1, 1]]) == ([0, 1, 2], [(0, 1, 0), (1, 1, 0), (2, 1, 0)])


def test_rows_that_begin_alike_are_one_run_wherever_they_stand() -> None:
    tables = [[1, 2, 3, 4], [9, 8, 7, 6], [1, 2, 5, 6], [1, 2, 3, 7]]
    assert shared(tables) == ([0, 3, 2, 1], [(0, 3, 2), (3, 1, 0)])


def test_a_run_takes_no_row_that_shares_far_less_than_the_others() -> None:
    tables = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 8, 8, 8, 8, 8]]
    assert shared(tables) == ([0, 1, 2], [(0, 2, 5), (2, 1, 0)])


def test_a_run_is_no_longer_than_leaves_work_for_all() -> None:
    members, runs = shared([[1, 2, row] for row in range(10, 30)])
    assert sorted(members) == list(range(20))
    assert [length for _, length, _ in runs] == [_TOGETHER, _TOGETHER, 4]
    assert {pages for _, _, pages in runs} == {2}


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_run_and_shares_what_the_run_says(seed: int) -> None:
    source = np.random.default_rng(seed)
    tables = source.integers(0, 3, (source.integers(1, 12), source.integers(1, 6)))
    members, runs = runs_of(tables)
    places = [place for first, length, _ in runs for place in range(first, first + length)]
    assert (sorted(members), places) == (list(range(len(tables))), list(range(len(tables))))
    for first, length, pages in runs:
        rows = tables[members[first : first + length], :pages]
        assert (rows == rows[0]).all()
