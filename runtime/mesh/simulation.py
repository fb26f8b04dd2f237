"""Explores seeds: each is a schedule of load and faults, played in virtual time and judged; repeats one, traced."""

import asyncio
import gc
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from runtime.errors import InvariantViolation
from runtime.mesh.simulated.loop import Stalled, VirtualLoop
from runtime.mesh.simulated.trial import Trial
from runtime.mesh.simulated.world import flatten

_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """What a seed violated; `invariants` are the numbers, empty for a failure that is none of them."""

    seed: int
    invariants: frozenset[int]
    messages: tuple[str, ...]


@dataclass(slots=True)
class Report:
    seeds: int = 0
    failures: list[Failure] = field(default_factory=list)


def explore(seeds: Iterable[int], on_progress: Callable[[Report], None] | None = None, *, processes: int = 1) -> Report:
    """Play every seed, in this process or in `processes` others; `on_progress` hears of each."""
    if processes == 1:
        return _reported(map(_failure, seeds), on_progress)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return _reported(pool.map(_failure, seeds, chunksize=_CHUNK), on_progress)


def _failure(seed: int) -> Failure | None:
    return play(seed)[0]


def _reported(failures: Iterable[Failure | None], on_progress: Callable[[Report], None] | None) -> Report:
    report = Report()
    for failure in failures:
        report.seeds += 1
        if failure is not None:
            report.failures.append(failure)
        if on_progress is not None:
            on_progress(report)
    return report


def replay(seed: int) -> tuple[Failure | None, list[str]]:
    """Play one seed again; the trace has a line for every event of every state table."""
    return play(seed, tracing=True)


def play(seed: int, *, tracing: bool = False) -> tuple[Failure | None, list[str]]:
    """Play one seed. Logs are off meanwhile: the trace says more, and in order. So is the collector of garbage, which
    ends forgotten generators when it likes."""
    trial = Trial(seed, tracing=tracing)
    gc.disable()
    # Logging holds its lock meanwhile: a collection within could end what waits for a thread that waits for the lock.
    logging.disable(logging.CRITICAL)
    errors: list[BaseException] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            errors += runner.run(trial.run()).failures
        except (Stalled, BaseExceptionGroup) as failed:
            errors += [*trial.world.failures, *flatten(failed)]
        finally:
            logging.disable(logging.NOTSET)
            gc.enable()
    trace = trial.world.trace or []
    if not errors:
        return None, trace
    numbers = frozenset(error.number for error in errors if isinstance(error, InvariantViolation))
    messages = tuple(dict.fromkeys(str(error) or repr(error) for error in errors))
    return Failure(seed, numbers, messages), trace
