"""One random schedule, a function of a seed: how big the mesh is, who wants what when, and what goes wrong."""

import random
from dataclasses import dataclass, replace

from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import VOCAB, WORDS
from runtime.mesh.simulated.database import StoreWeather
from runtime.mesh.simulated.talk import Talk, make_talk, widened
from runtime.mesh.simulated.world import Weather

_FIRST_WORD = VOCAB - len(WORDS)
# Nine words that may not follow each word: an answer that forgot what it said before a failover soon says one of them.
_PAIRS = tuple(
    (_FIRST_WORD + first, _FIRST_WORD + (7 * first + step) % len(WORDS))
    for first in range(len(WORDS))
    for step in range(9)
)
_SKEW_S = 300.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A client: when it comes, what it wants, and when it goes away (None: it stays to the end)."""

    at: float
    prompt: tuple[int, ...]
    sampling: Sampling
    deadline_s: float
    leaves_after: float | None


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is what `Faults` in `simulated/faults.py` can do; `victim` is a number that it maps to one of those who
    live."""

    at: float
    kind: str
    victim: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """`skew_s` is how far the store's clock is from the others'; `retries` how many a gateway keeps at most; `copies`
    of every sequence are held by workers of the role `mirrors_on`."""

    prefill: int
    decode: int
    gateways: int
    pages: int
    slots: int
    max_running: int
    retries: float
    skew_s: float
    intruder: bool
    weather: Weather
    store: StoreWeather
    asks: tuple[Ask, ...]
    talks: tuple[Talk, ...]
    faults: tuple[Fault, ...]
    copies: int
    mirrors_on: str


def make_scenario(seed: int) -> Scenario:
    # What talks do beside talking has a source of its own: without it a seed stays what it was.
    rng, wider = random.Random(seed), random.Random(f"wider {seed}")
    span = rng.uniform(0.3, 2.0)
    return Scenario(
        prefill=rng.randint(1, 2),
        decode=rng.randint(2, 3),
        gateways=rng.randint(1, 3),
        pages=rng.choice((24, 32, 64)),
        slots=rng.choice((0, 8, 16, 16)),
        max_running=rng.choice((2, 4, 8)),
        retries=rng.choice((2.0, 8.0, 64.0)),
        skew_s=rng.uniform(-_SKEW_S, _SKEW_S),
        intruder=rng.random() < 0.2,
        weather=_weather(rng),
        store=_store(rng),
        asks=_asks(rng, span),
        talks=tuple(widened(wider, make_talk(rng, span, number)) for number in range(rng.choice((0, 1, 1, 2)))),
        faults=_faults(rng, span),
        copies=rng.choice((0, 1, 1, 2)),
        mirrors_on=rng.choice((PREFILL, DECODE)),
    )


def _weather(rng: random.Random) -> Weather:
    return Weather(
        straggle=rng.choice((0.0, 0.02, 0.1)),
        lose=rng.choice((0.0, 0.0, 0.1)),
        duplicate=rng.choice((0.0, 0.2)),
        corrupt=rng.choice((0.0, 0.0, 0.05, 0.3)),
    )


def _store(rng: random.Random) -> StoreWeather:
    return StoreWeather(slow=rng.choice((0.0, 0.1)), slow_s=rng.choice((0.1, 0.8, 1.6)), again=rng.choice((0.0, 0.1)))


def _asks(rng: random.Random, span: float) -> tuple[Ask, ...]:
    stem = tuple(rng.randrange(97, 123) for _ in range(24))
    return tuple(_ask(rng, span, stem) for _ in range(rng.randint(2, 8)))


def _ask(rng: random.Random, span: float, stem: tuple[int, ...]) -> Ask:
    own = tuple(rng.randrange(97, 123) for _ in range(rng.randint(1, 30)))
    sampling = Sampling(
        max_tokens=rng.randint(1, 24),
        temperature=rng.choice((0.0, 1.0)),
        seed=rng.randrange(1 << 30),
    )
    if sampling.seed % 3 == 0:
        sampling = replace(sampling, banned_tokens=_PAIRS)
    if sampling.seed % 5 == 0:
        sampling = replace(sampling, prompt_logprobs=2)
    return Ask(
        at=rng.uniform(0, span),
        prompt=(stem[: rng.choice((0, 8, 24))] + own),
        sampling=sampling,
        deadline_s=rng.choice((20.0, 20.0, 20.0, rng.uniform(0.05, 1.0))),
        leaves_after=rng.choice((None, None, rng.uniform(0.0, 0.6))),
    )


# What happens more often stands here more often.
_KINDS = (
    "kill kill kill freeze freeze freeze part part halfpart reset reset reset drain fail stop store control jump"
).split()


def _faults(rng: random.Random, span: float) -> tuple[Fault, ...]:
    return tuple(
        Fault(rng.uniform(0, span + 0.5), rng.choice(_KINDS), rng.randrange(1 << 16), rng.uniform(0.2, 4.0))
        for _ in range(rng.choice((0, 1, 2, 4)))
    )
