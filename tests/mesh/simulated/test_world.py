"""The simulated world is no stricter and no milder than a real process is."""

import asyncio

from runtime.mesh.simulated.world import Process, World
from tests.roles.virtual import in_virtual_time


@in_virtual_time
async def test_a_timer_that_came_due_in_a_frozen_process_can_still_be_cancelled_when_it_thaws() -> None:
    async with asyncio.TaskGroup() as group:
        process = Process(World(1, group), "gw-0")
        fired: list[str] = []
        process.freeze(2.0)
        process.when_awake(lambda: cancelled.cancel())
        cancelled = process.call_later(1.0, lambda: fired.append("cancelled"))
        process.call_later(1.0, lambda: fired.append("kept"))
        await asyncio.sleep(3.0)
        assert fired == ["kept"]
