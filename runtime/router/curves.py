"""Measured milliseconds of many workers as columns on one grid, so that one pass weighs all of them."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Points = tuple[tuple[int, float], ...]

TOKENS: Ints = np.array([0, *(256 << power for power in range(13))], dtype=np.int64)
"""Tokens of a prompt, up to 1,048,576; beyond, lines go on as before."""
BATCH: Ints = np.array([0, *(1 << power for power in range(12))], dtype=np.int64)
"""Sequences that decode together."""
# As numbers of Python's, which one look is faster in.
_EDGES = {len(grid): [int(edge) for edge in grid] for grid in (TOKENS, BATCH)}
_GAPS = {len(grid): np.diff(grid).astype(np.float64) for grid in (TOKENS, BATCH)}


@lru_cache(maxsize=8192)
def on_grid(points: Points, grid: str) -> Floats:
    """The line through the origin and the points, on the grid `tokens` or `batch`; a batch of none takes as long as the
    smallest."""
    where = TOKENS if grid == "tokens" else BATCH
    xs = [0, *(x for x, _ in points)]
    ys = [0.0 if grid == "tokens" else points[0][1], *(y for _, y in points)]
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    beyond = np.maximum(where - xs[-1], 0) * max(slope, 0.0)
    line: Floats = np.interp(where, xs, ys) + beyond
    line.setflags(write=False)
    return line


def columns(measured: Iterable[Points], grid: str, otherwise: Sequence[Points] = ()) -> Floats | None:
    """A row for every worker; whose points are empty has the mean of the others, or of `otherwise`. None when nobody
    was measured."""
    told = list(measured)
    known = [on_grid(points, grid) for points in told if points]
    mean = known or [on_grid(points, grid) for points in otherwise if points]
    if not mean:
        return None
    usual = np.mean(mean, axis=0)
    return np.array([on_grid(points, grid) if points else usual for points in told]).reshape(len(told), len(usual))


def at(lines: Floats, grid: Ints, x: int) -> Floats:
    """Every line at one place."""
    edges = _EDGES[len(grid)]
    left = min(bisect_right(edges, x) - 1, len(edges) - 2)
    share = (x - edges[left]) / (edges[left + 1] - edges[left])
    near: Floats = lines[:, left]
    there: Floats = near + share * (lines[:, left + 1] - near)
    return there


def each_at(lines: Floats, grid: Ints, xs: Ints) -> Floats:
    """Every line at a place of its own."""
    left = grid[1:-1].searchsorted(xs, side="right")
    share = (xs - grid.take(left)) / _GAPS[len(grid)].take(left)
    left += _rows(len(xs)) * lines.shape[1]
    flat = lines.reshape(-1)
    low: Floats = flat.take(left)
    there: Floats = low + share * (flat.take(left + 1) - low)
    return there


@lru_cache(maxsize=64)
def _rows(count: int) -> Ints:
    return np.arange(count)
