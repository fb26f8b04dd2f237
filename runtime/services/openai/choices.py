"""Several answers to one prompt: a turn of the gateway each, their deltas interleaved as they come.

The others begin when the first has its first token: by then the prompt's pages are in the prefix cache for all.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, Self

from runtime.domain.generation import Delta, Generation
from runtime.domain.sampling import choice_seed
from runtime.errors import BatonError
from runtime.roles.gateway import Deltas, GatewayRole

MAX_CHOICES = 16
# What is read from the turns ahead of the client; beyond it each turn's own bound rules.
_AHEAD = 64


class Arrivals(Protocol):
    """Deltas with the index of the choice that they belong to, up to the last choice's finish."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> tuple[int, Delta]:
        """Raises how the first choice that failed failed."""

    def ready(self) -> bool:
        """Whether the next step will not wait."""


class Lone:
    """The arrivals of a single choice."""

    def __init__(self, deltas: Deltas) -> None:
        self._deltas = deltas

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        return 0, await anext(self._deltas)

    def ready(self) -> bool:
        return self._deltas.ready()


class _Several:
    def __init__(self, gateway: GatewayRole, generation: Generation, count: int) -> None:
        self._gateway = gateway
        self._generation = generation
        self._left = count
        self._clock = asyncio.get_running_loop().time
        self._ends = self._clock() + generation.deadline_s
        self._begun = asyncio.Event()
        self._queue: asyncio.Queue[tuple[int, Delta | BatonError]] = asyncio.Queue(_AHEAD)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        if not self._left:
            raise StopAsyncIteration
        index, item = await self._queue.get()
        if isinstance(item, BatonError):
            raise item
        self._left -= item.finish is not None
        return index, item

    def ready(self) -> bool:
        return not self._queue.empty()

    async def follow(self, index: int) -> None:
        """Run the turn of one choice, from its place in the order on."""
        if index:
            await self._begun.wait()
        asked = self._generation
        sampling = replace(asked.sampling, seed=choice_seed(asked.sampling.seed, index))
        if index:
            sampling = replace(sampling, prompt_logprobs=None)
        mine = replace(asked, sampling=sampling, deadline_s=self._ends - self._clock())
        try:
            async with self._gateway.open(mine) as deltas:
                async for delta in deltas:
                    self._begun.set()
                    await self._queue.put((index, delta))
        except BatonError as error:
            await self._queue.put((index, error))


async def give_choices(
    gateway: GatewayRole, generation: Generation, count: int, give: Callable[[Arrivals], Awaitable[None]]
) -> None:
    """Open `count` turns for `generation`, which differ in their seeds alone, but for what is told
    of the prompt, which the first tells; and `give` what arrives. Leaves all of
    them, and so cancels what is unfinished, when it ends. Raises the `BatonError` of the first that fails."""
    if count == 1:
        async with gateway.open(generation) as deltas:
            await give(Lone(deltas))
        return
    failed: BatonError | None = None
    several = _Several(gateway, generation, count)
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(several.follow(index)) for index in range(count)]
        try:
            await give(several)
        except BatonError as error:
            failed = error
            for turn in turns:
                turn.cancel()
    if failed is not None:
        raise failed
