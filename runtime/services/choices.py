"""Several answers to one prompt: a turn of the gateway each, their deltas interleaved as they come.

The others begin when the first has its first token: by then the prompt's pages are in the prefix cache for all. Of more
candidates than are wanted the likeliest are given, once all have ended.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Protocol, Self

from runtime.domain.generation import Delta, Generation, Handoffs
from runtime.domain.sampling import choice_seed
from runtime.errors import BatonError, InvalidArgument
from runtime.roles.deltas import Deltas
from runtime.roles.gateway import GatewayRole

MAX_CHOICES = 16
# What is read from the turns ahead of the client; beyond it each turn's own bound rules.
_AHEAD = 64


def check_choices(n: int, best_of: int) -> None:
    """Raise `InvalidArgument` unless both are counts that go together."""
    for field, value in (("n", n), ("best_of", best_of)):
        if not 1 <= value <= MAX_CHOICES:
            raise InvalidArgument(f"{field} must be between 1 and {MAX_CHOICES}, got {value}", field=field)
    if best_of < n:
        raise InvalidArgument(f"best_of must be at least n, which is {n}, got {best_of}", field="best_of")


class Arrivals(Protocol):
    """Deltas with the index of the choice that they belong to, up to the last choice's finish."""

    @property
    def withheld(self) -> int:
        """Tokens of candidates that are not given."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> tuple[int, Delta]:
        """Raises how the first choice that failed failed."""

    def ready(self) -> bool:
        """Whether the next step will not wait."""


class Lone:
    """The arrivals of a single choice."""

    withheld = 0

    def __init__(self, deltas: Deltas) -> None:
        self._deltas = deltas

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        return 0, await anext(self._deltas)

    def ready(self) -> bool:
        return self._deltas.ready()


class _Several:
    withheld = 0

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


class _Best:
    """The `count` candidates whose tokens have the highest mean log-probability, the best first; of equals the earlier.

    What is told of the prompt is what the first candidate told, for which it was computed.
    """

    def __init__(self, candidates: Arrivals, count: int) -> None:
        self.withheld = 0
        self._candidates = candidates
        self._count = count
        self._chosen: AsyncIterator[tuple[int, Delta]] = self._choose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        return await anext(self._chosen)

    def ready(self) -> bool:
        return False

    async def _choose(self) -> AsyncIterator[tuple[int, Delta]]:
        came: dict[int, list[Delta]] = {}
        async for index, delta in self._candidates:
            came.setdefault(index, []).append(delta)
        order = sorted(came, key=lambda index: (-_likelihood(came[index]), index))
        chosen, left = order[: self._count], order[self._count :]
        self.withheld = sum(len(delta.tokens) for index in left for delta in came[index])
        told = Handoffs()
        for delta in came[0]:
            told.add(delta)
        for place, index in enumerate(chosen):
            for number, delta in enumerate(came[index]):
                first = number == 0 and place == 0
                yield (
                    place,
                    replace(delta, handoff=told.newest if first else None, scores=came[0][0].scores if first else None),
                )


def _likelihood(deltas: list[Delta]) -> float:
    logprobs = [sampled.logprob for delta in deltas for sampled in delta.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


async def give_choices(
    gateway: GatewayRole,
    generation: Generation,
    count: int,
    candidates: int,
    give: Callable[[Arrivals], Awaitable[None]],
) -> None:
    """Open a turn for each of `candidates`, which differ in their seeds alone, but for what is told of the prompt,
    which the first tells; and `give` what arrives of the `count` best. Leaves all of them, and so cancels what is
    unfinished, when it ends. Raises the `BatonError` of the first that fails."""
    if candidates == 1:
        async with gateway.open(generation) as deltas:
            await give(Lone(deltas))
        return
    if candidates > count:
        logprobs = generation.sampling.logprobs or 0
        generation = replace(generation, sampling=replace(generation.sampling, logprobs=logprobs))
    failed: BatonError | None = None
    several = _Several(gateway, generation, candidates)
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(several.follow(index)) for index in range(candidates)]
        try:
            await give(several if candidates == count else _Best(several, count))
        except BatonError as error:
            failed = error
            for turn in turns:
                turn.cancel()
    if failed is not None:
        raise failed
