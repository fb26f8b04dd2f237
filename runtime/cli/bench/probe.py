"""Times one decode worker from outside: sends it requests of random tokens and notes when their tokens come.

Stands where a gateway would, so a worker cannot tell it from one; knows nothing of models or text.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from runtime.clients.channels import Channels
from runtime.clients.peers import GrpcPeers
from runtime.domain.messages import (
    Acknowledge,
    AttemptFailed,
    CancelAttempt,
    Handoff,
    Output,
    PrefillCandidate,
    Start,
)
from runtime.domain.sequence import Ref, Sampling
from runtime.ids import GatewayId, Ids, TurnId
from runtime.mesh.tenants import DEFAULT
from runtime.ports import DecodeStream

_STEPS = 4
_DEADLINE_MS = 300_000
_NEIGHBOUR_TOKENS = 32
_NEIGHBOUR_STEPS = 4000
_SETTLING = 6


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: to the first token, of one decode step after it (0 when all came together), and how much later than
    without this request the neighbour's tokens came."""

    first_s: float
    step_s: float
    waited_s: float
    handoff: Handoff


@dataclass(slots=True)
class _Arrivals:
    """When each token of a request came."""

    queue: asyncio.Queue[Output | AttemptFailed] = field(default_factory=lambda: asyncio.Queue(_NEIGHBOUR_STEPS + 1))
    times: list[float] = field(default_factory=list)

    async def next(self) -> Output:
        """The next output; raises how the request failed."""
        output = await self.queue.get()
        if isinstance(output, AttemptFailed):
            raise output.error
        return output


class Probe:
    """`vocab` bounds the random token ids."""

    def __init__(self, stream: DecodeStream, vocab: int) -> None:
        self._stream = stream
        self._vocab = vocab
        self._random = random.SystemRandom()
        self._ids = Ids(self._random)
        self._arrivals: dict[TurnId, _Arrivals] = {}
        self._neighbour: _Arrivals | None = None
        self._step_s = 0.0
        self._greeted = asyncio.Event()

    async def run(self) -> None:
        """Take in what comes until cancelled; raises `Unavailable` when the worker is gone."""
        async for batch in self._stream.batches():
            self._greeted.set()
            now = time.perf_counter()
            for output in batch.outputs:
                arrivals = self._arrivals.get(output.ref.turn)
                if arrivals is not None:
                    arrivals.times.append(now)
                    arrivals.queue.put_nowait(output)

    async def wait_ready(self) -> None:
        """Wait for the worker's first word; nothing may be sent before it."""
        await self._greeted.wait()

    async def measure(self, tokens: int, candidates: tuple[PrefillCandidate, ...]) -> Timing:
        """Run one request of `tokens` fresh tokens; with candidates its prefill runs there. Raises how it failed."""
        return await self.measure_prompt(self.fresh(tokens), candidates)

    def fresh(self, tokens: int) -> tuple[int, ...]:
        """A prompt that no cache knows."""
        return tuple(self._random.randrange(self._vocab) for _ in range(tokens))

    async def measure_prompt(self, prompt: tuple[int, ...], candidates: tuple[PrefillCandidate, ...] = ()) -> Timing:
        """Run one request. Raises how it failed."""
        began = time.perf_counter()
        ref, arrivals = await self._start(prompt, _STEPS, candidates)
        handoff = Handoff(0)
        while True:
            output = await arrivals.next()
            handoff = output.handoff or handoff
            if output.finish is not None:
                break
        await self._stream.send(Acknowledge(ref))
        del self._arrivals[ref.turn]
        steps = [later - earlier for earlier, later in pairwise(arrivals.times)]
        first = arrivals.times[0]
        step_s = statistics.median(steps) if steps else 0.0
        return Timing(first - began, step_s, await self._waited(began, first), handoff)

    @asynccontextmanager
    async def neighbour(self) -> AsyncIterator[None]:
        """Let another request decode all the while."""
        ref, self._neighbour = await self._start(self.fresh(_NEIGHBOUR_TOKENS), _NEIGHBOUR_STEPS, ())
        for _ in range(_SETTLING):
            await self._neighbour.next()
        alone = self._neighbour.times[1:]
        self._step_s = statistics.median(later - earlier for earlier, later in pairwise(alone))
        try:
            yield
        finally:
            self._neighbour = None
            await self._stream.send(CancelAttempt(ref))
            del self._arrivals[ref.turn]

    async def _start(
        self, prompt: tuple[int, ...], steps: int, candidates: tuple[PrefillCandidate, ...]
    ) -> tuple[Ref, _Arrivals]:
        ref = Ref(self._ids.turn(), 1, 1)
        arrivals = self._arrivals[ref.turn] = _Arrivals()
        sampling = Sampling(max_tokens=steps, temperature=0.0, ignore_eos=True)
        await self._stream.send(Start(ref, DEFAULT, prompt, sampling, (), candidates, _DEADLINE_MS))
        return ref, arrivals

    async def _waited(self, began: float, first: float) -> float:
        """How much longer the neighbour's tokens took, from its last before the request to its first after it."""
        neighbour = self._neighbour
        if neighbour is None:
            return 0.0
        while neighbour.times[-1] <= first:
            await neighbour.next()
        before = max(index for index, at in enumerate(neighbour.times) if at <= began)
        after = next(index for index, at in enumerate(neighbour.times) if at > first)
        return max(neighbour.times[after] - neighbour.times[before] - (after - before) * self._step_s, 0.0)


@asynccontextmanager
async def probing(decode: str, vocab: int) -> AsyncIterator[Probe]:
    """A probe of the decode worker at an address, ready to be used."""
    async with Channels() as channels, GrpcPeers(channels, GatewayId("bench")).decode(decode).attach() as stream:
        probe = Probe(stream, vocab)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(probe.run())
            await probe.wait_ready()
            yield probe
            running.cancel()
