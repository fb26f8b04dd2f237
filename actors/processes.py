"""The processes of one run of a mesh: each carries the run's mark in its environment, and so do all it starts.

Ends what carries the mark and nothing else, whoever its parent is by now.
"""

import os
from collections.abc import Iterator

import psutil

_MARK = "BATON_RUN"
_ROUNDS = 10


def mark(run: str) -> dict[str, str]:
    """Environment variables that put a process, and all it will start, into `run`."""
    # Whoever writes a longer title over its arguments would write over the mark too.
    return {_MARK: run, "SPT_NOENV": "1"}


def of_run(run: str) -> list[psutil.Process]:
    """All living processes of `run`, but this one."""
    return [process for process in _others() if _mark_of(process) == run]


def end_run(run: str, patience_s: float) -> int:
    """Ask the processes of a run to end, after `patience_s` make them, until there are none; returns how many.

    More than one round, because one may start another meanwhile.
    """
    ended = 0
    for _ in range(_ROUNDS):
        processes = of_run(run)
        if not processes:
            break
        ended += len(processes)
        for process in processes:
            _signal(process, hard=False)
        _, stubborn = psutil.wait_procs(processes, timeout=patience_s)
        for process in stubborn:
            _signal(process, hard=True)
        psutil.wait_procs(stubborn, timeout=patience_s)
    return ended


def _others() -> Iterator[psutil.Process]:
    return (process for process in psutil.process_iter() if process.pid != os.getpid())


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(_MARK)
    except (psutil.Error, OSError):
        return None  # gone, a zombie, or another user's


def _signal(process: psutil.Process, *, hard: bool) -> None:
    try:
        if hard:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return
