"""Long prompts beside sequences that decode, on a simulated engine in virtual time: who waits how long for whom."""

import asyncio
import math
from itertools import pairwise

import pytest

from runtime.clock import LoopClock
from runtime.config import EngineConfig
from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import DecodeLocal, Generated, Submit
from runtime.engine.simulated import SimulatedEngine, StepProfile, simulated_spec
from runtime.ids import SequenceId
from tests.roles.virtual import in_virtual_time

# A step takes 20 ms, and a millisecond more for each token.
PROFILE = StepProfile(base_ms=20, token_ms=1)
DECODED, LONG = 300, 2000


async def gaps(itl_s: float | None) -> tuple[list[float], float]:
    """Seconds between the tokens of a sequence that decodes, and until a long prompt that comes meanwhile has its
    first."""
    clock = LoopClock()
    spec = simulated_spec("simulated", 16, 8192)
    engine = SimulatedEngine(spec, 1024, Limits(512, 8, itl_s), PROFILE, clock)
    engine.tell(submit("decoding", 1, DECODED))
    times: list[float] = []
    arrived = first = math.nan
    async for output in engine.steps():
        for event in output.events:
            if isinstance(event, Generated) and event.sequence == "decoding":
                times.append(clock.now())
                if len(times) == 20:
                    engine.tell(submit("long", LONG, 1))
                    arrived = clock.now()
            elif isinstance(event, Generated):
                first = clock.now()
        if len(times) == DECODED:
            return [later - earlier for earlier, later in pairwise(times)], first - arrived
    raise AssertionError("the engine ended")


def submit(name: str, prompt: int, answer: int) -> Submit:
    tokens = tuple(place % 97 for place in range(prompt))
    return Submit(Sequence(SequenceId(name), tokens, Sampling(answer, ignore_eos=True), bytes(16)), DecodeLocal())


@in_virtual_time
async def test_decoding_waits_for_whole_chunks_without_a_bound() -> None:
    async with asyncio.timeout(100):
        waits, first = await gaps(None)
    assert max(waits) > 0.5
    assert first == pytest.approx(LONG / 1000, rel=0.1)


@in_virtual_time
async def test_with_a_bound_every_token_is_in_time_and_the_prefill_goes_on() -> None:
    async with asyncio.timeout(100):
        waits, first = await gaps(0.03)
    # The first step with prefill tells how long prefill takes here.
    *others, longest = sorted(waits)
    assert longest <= 0.1
    assert max(others) <= 0.03 * 1.05
    # 9 ms of each step of 30 are its own.
    assert first == pytest.approx(LONG / 9 * 0.03, rel=0.15)


@in_virtual_time
async def test_by_default_prefill_makes_no_token_wait_twice_as_long() -> None:
    itl_ms = EngineConfig().itl_ms
    assert itl_ms is not None
    async with asyncio.timeout(100):
        waits, first = await gaps(itl_ms / 1000)
    *others, _ = sorted(waits)
    assert max(others) <= 2 * min(others) * 1.01
    # 16 ms of each step of 37 are its own.
    assert first == pytest.approx(LONG / 16 * 0.037, rel=0.15)
