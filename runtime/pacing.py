"""When a stream may write again: a message costs more than its tokens, so on a busy loop tokens wait for company."""

import asyncio
import time

_PASSES = 12
_BUSY_S = 0.0003
_LONGEST_S = 0.01


async def let_others_run() -> None:
    """Between two messages of a stream: on an idle loop this lasts microseconds; on a busy one, some passes of it.
    What comes meanwhile gathers, and goes out as one message: so the busier, the fewer messages a token."""
    began = time.perf_counter()
    await asyncio.sleep(0)
    took = time.perf_counter() - began
    if took > _BUSY_S:
        await asyncio.sleep(min((_PASSES - 1) * took, _LONGEST_S))
