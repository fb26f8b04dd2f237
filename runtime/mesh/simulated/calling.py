"""A call from one simulated process to another: it may not arrive, its answer may not, and nobody waits for ever.

Whoever gets no answer does not know whether his work was done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from runtime.errors import BatonError, Unavailable
from runtime.mesh.simulated.world import Process, resolve

T = TypeVar("T")
RESET = Unavailable("the connection was reset")
REFUSED = Unavailable("the connection was refused")


async def call(  # noqa: C901 - both ends of a call, and what may happen between them
    source: Process,
    target: Process,
    group: Callable[[], asyncio.TaskGroup],
    work: Callable[[], Awaitable[T]],
    *,
    seconds: float,
    late: BatonError,
) -> T:
    """Run `work` in the target when the call arrives, as a task of its `group`. Raises what it raises, `Unavailable`
    when the connection broke, and `late` when no answer came within `seconds`."""
    world = source.world
    if not source.alive:
        raise RESET
    if not target.alive:
        await source.sleep(world.delay())
        raise REFUSED
    answer: asyncio.Future[T] = world.loop.create_future()
    lost = world.chance(world.weather.lose), world.chance(world.weather.lose)

    async def serve() -> None:
        try:
            result = await work()
        except BatonError as error:
            reply(failing(answer, RESET if lost[1] else error))
        else:
            reply(failing(answer, RESET) if lost[1] else lambda: resolve(answer, result))

    def reply(told: Callable[[], None]) -> None:
        world.deliver(target, source, told)

    def arrive() -> None:
        if lost[0]:
            reply(failing(answer, RESET))
        elif try_spawn(group(), serve()) is None:
            reply(failing(answer, REFUSED))

    world.deliver(source, target, arrive)
    for end in (source, target):
        end.at_death(failing(answer, RESET))
    timer = source.call_later(seconds, failing(answer, late))
    try:
        return await answer
    finally:
        timer.cancel()


def try_spawn(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """None when the group, and so its process, stops already."""
    try:
        return group.create_task(work)
    except RuntimeError:
        work.close()
        return None


def failing(answer: "asyncio.Future[T]", error: BatonError) -> Callable[[], None]:
    """What gives this answer."""
    return lambda: fail(answer, error)


def fail(answer: "asyncio.Future[T]", error: BatonError) -> None:
    """Answer with an error, unless it was answered or given up before."""
    if not answer.done():
        answer.set_exception(error)
        # Marks it as seen: whoever asked may have been cancelled meanwhile.
        answer.exception()
