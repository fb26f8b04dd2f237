"""How fast this machine reads memory: `python -m runtime.engine.timing.memory THREADS` prints bytes per second.

A decode step of one stream reads every weight once, so this is what bounds it.
"""

import sys
import time

import torch

_BYTES = 1 << 30
_TIMES = 5


def read_bytes_per_s(threads: int) -> float:
    """The best of a few sums over a block far larger than any cache."""
    torch.set_num_threads(threads)
    block = torch.ones(_BYTES // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(_TIMES):
        began = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - began)
    return _BYTES / best


def main() -> None:
    sys.stdout.write(str(read_bytes_per_s(int(sys.argv[1]))))


if __name__ == "__main__":
    main()
