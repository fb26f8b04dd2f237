"""When a stream may write again: a message costs more than its tokens, so on a busy loop tokens wait for company."""

import asyncio

_PASSES = 12
_LONGEST_S = 0.01


async def let_others_run() -> None:
    """Between two messages of a stream: some passes of the event loop. On an idle loop they last microseconds; on a
    busy one what comes meanwhile gathers, and goes out as one message. So the busier, the fewer messages a token.

    Where each pass has to wait for a processor, milliseconds are the bound."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + _LONGEST_S
    for _ in range(_PASSES):
        await asyncio.sleep(0)
        if loop.time() > ends:
            return
