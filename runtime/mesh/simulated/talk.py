"""What the users of one session do, a function of a seed: what they say, on which branch, and what they do to it."""

import random
from dataclasses import dataclass

from runtime.domain.retention import NO_RETENTION, Retention
from runtime.domain.sequence import Sampling
from runtime.domain.sessions import Halt, OnConflict


@dataclass(frozen=True, slots=True)
class Say:
    """`text` is said by nobody else. `cut_after`: so long after the beginning the stream breaks and is asked for anew.
    `halt_after`: then somebody stops it. `leaves_after`: then its user goes away; with `alone` False the turn ends too.
    """

    text: str
    sampling: Sampling
    policy: OnConflict
    deadline_s: float
    cut_after: float | None = None
    halt_after: float | None = None
    halt: Halt = Halt.DISCARD
    leaves_after: float | None = None
    alone: bool = True
    expects_head: bool = False
    retention: Retention = NO_RETENTION


@dataclass(frozen=True, slots=True)
class Fork:
    """The user goes on with a branch of its own, that leaves the present one `back` turns before its head."""

    name: str
    back: int


@dataclass(frozen=True, slots=True)
class Rollback:
    back: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The session is deleted."""


Step = Say | Fork | Rollback | Forget


@dataclass(frozen=True, slots=True)
class Talk:
    """A session, and a script for each of its users; each waits `pause_s` before its next step."""

    name: str
    at: float
    rerender: bool
    pause_s: float
    scripts: tuple[tuple[Step, ...], ...]


def make_talk(rng: random.Random, span: float, number: int) -> Talk:
    name = f"talk-{number}"
    users = rng.choice((1, 1, 2, 3))
    return Talk(
        name,
        rng.uniform(0, span / 2),
        rng.random() < 0.15,
        rng.choice((0.0, 0.05, 0.5)),
        tuple(_script(rng, f"{number}{user}") for user in range(users)),
    )


def _script(rng: random.Random, who: str) -> tuple[Step, ...]:
    steps: list[Step] = [_say(rng, f"{who}{turn}") for turn in range(rng.randint(1, 3))]
    if rng.random() < 0.3:
        steps.insert(rng.randrange(1, len(steps) + 1), Fork(f"b{who}", rng.randrange(2)))
    if rng.random() < 0.2:
        steps.insert(rng.randrange(1, len(steps) + 1), Rollback(rng.randrange(3)))
    if rng.random() < 0.05:
        steps.append(Forget())
    return tuple(steps)


def _say(rng: random.Random, text: str) -> Say:
    halted = rng.random() < 0.15
    sampling = Sampling(max_tokens=rng.randint(1, 10), temperature=rng.choice((0.0, 1.0)), seed=rng.randrange(1 << 30))
    return Say(
        text,
        sampling,
        rng.choice((*OnConflict, OnConflict.ENQUEUE, OnConflict.ENQUEUE)),
        rng.choice((20.0, 20.0, 20.0, rng.uniform(0.1, 1.0))),
        cut_after=rng.choice((None, None, rng.uniform(0.0, 0.2))),
        halt_after=rng.uniform(0.0, 0.2) if halted else None,
        halt=rng.choice(tuple(Halt)),
        leaves_after=rng.choice((None, None, None, rng.uniform(0.0, 0.3))),
        alone=rng.random() < 0.6,
        expects_head=rng.random() < 0.2,
        retention=Retention(0, (0, 300, 2000, 60_000)[sampling.seed % 4]),
    )
