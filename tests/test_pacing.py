"""Streams wait for company on a busy loop, and never long."""

import asyncio
import time

from runtime.pacing import let_others_run


async def passes_beside(pass_s: float) -> int:
    """How many passes of the loop a writer waits when each takes so long."""
    passes = 0

    async def work() -> None:
        nonlocal passes
        while True:
            time.sleep(pass_s)  # noqa: ASYNC251 - a loop that is busy
            passes += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        await let_others_run()
        working.cancel()
    return passes


async def test_on_a_quick_loop_a_writer_goes_on_at_once() -> None:
    # The machine may take its time for one of them.
    assert min([await passes_beside(0.0) for _ in range(5)]) <= 3


async def test_on_a_busy_loop_it_lets_passes_go_by() -> None:
    assert await passes_beside(0.001) >= 4


async def test_on_a_slow_loop_it_waits_milliseconds_only() -> None:
    assert 2 <= await passes_beside(0.004) <= 8
