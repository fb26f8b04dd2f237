"""Which rows of a step begin with the same pages, so that those are read from memory once for all. Pure; no KV."""

import numpy as np
import numpy.typing as npt
import torch

from runtime.engine.kernels.library import Rows
from runtime.engine.paging import DecodeGroup

# Rows that go through shared pages together: as many as need not wait for memory, and no more than leave work for all
# threads.
_TOGETHER = 8


def rows_of(group: DecodeGroup) -> Rows:
    """The rows of a group in runs that share what their block tables begin with."""
    tables = group.pages.numbers.view(len(group.lengths), -1).numpy()
    members, runs = runs_of(tables)
    return Rows(group.pages.numbers, group.lengths, torch.tensor(members), torch.tensor(runs))


def runs_of(tables: npt.NDArray[np.int64]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Of block tables `[n, width]`: the rows in an order of runs, and of each run its first place, its length, and how
    many pages all of it begin with. A run takes no row that would more than halve what it shares."""
    count = len(tables)
    if len(set(tables[:, 0].tolist())) == count:
        return list(range(count)), [(row, 1, 0) for row in range(count)]
    members = sorted(range(count), key=lambda row: tables[row].tolist())
    runs: list[tuple[int, int, int]] = []
    for place, row in enumerate(members):
        if runs:
            first, length, shared = runs[-1]
            alike = _alike(tables[members[first]], tables[row])
            if length < _TOGETHER and alike > 0 and 2 * alike >= shared:
                runs[-1] = (first, length + 1, alike if length == 1 else min(shared, alike))
                continue
        runs.append((place, 1, 0))
    return members, runs


def _alike(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """How many pages both begin with."""
    unlike = np.flatnonzero(one != other)
    return int(unlike[0]) if len(unlike) else len(one)
