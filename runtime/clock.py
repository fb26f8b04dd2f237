"""Time as the roles see it: monotonic seconds of this process. Never wall-clock time, never another machine's time."""

import asyncio
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds and a way to wait. Waits end late when the process was stopped, never early."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class LoopClock:
    """The clock of the running event loop: real in a process, virtual on the simulation's loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
