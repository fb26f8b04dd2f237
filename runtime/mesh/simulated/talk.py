"""What the users of one session do, a function of a seed: what they say, on which branch, and what they do to it."""

import random
from dataclasses import dataclass, replace

from runtime.domain.retention import NO_RETENTION, Retention
from runtime.domain.sequence import Sampling
from runtime.domain.sessions import Halt, OnConflict
from runtime.domain.spending import NO_ACCOUNT, Limits
from runtime.domain.tools import NO_TOOLS, Toolbox
from runtime.mesh.simulated.tools import TOOLS

NO_LIMITS = NO_ACCOUNT.limits


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


@dataclass(frozen=True, slots=True)
class Erase:
    """The session is erased, everywhere."""


@dataclass(frozen=True, slots=True)
class Resolve:
    """After a while somebody answers some of the calls that the branch's head made: allows, denies, or brings what they
    brought. `again`: then once more those that were. With `go_on` the next turn follows when none is left."""

    late_s: float
    share: float
    denies: float
    again: bool
    go_on: Sampling | None


Step = Say | Fork | Rollback | Forget | Erase | Resolve


@dataclass(frozen=True, slots=True)
class Talk:
    """A session, and a script for each of its users; each waits `pause_s` before its next step. All turns may call the
    tools of `toolbox`."""

    name: str
    at: float
    rerender: bool
    pause_s: float
    scripts: tuple[tuple[Step, ...], ...]
    toolbox: Toolbox = NO_TOOLS
    limits: Limits = NO_LIMITS

    @property
    def erases(self) -> bool:
        return any(isinstance(step, Erase) for script in self.scripts for step in script)


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


def widened(rng: random.Random, talk: Talk) -> Talk:
    """The same talk, perhaps with tools, with limits, or erased in its midst."""
    if rng.random() < 0.3:
        wait_ms = rng.choice((None, rng.randint(50, 1500)))
        toolbox = Toolbox(TOOLS, wait_ms=wait_ms, approval_ms=rng.choice((None, rng.randint(50, 1500))))
        talk = replace(talk, toolbox=toolbox, scripts=tuple(_resolving(rng, script) for script in talk.scripts))
    if rng.random() < 0.3:
        tokens = rng.choice((None, rng.randint(3, 40)))
        turns = rng.choice((None, rng.randint(1, 6)))
        talk = replace(talk, limits=Limits(completion_tokens=tokens, turns=turns))
    if rng.random() < 0.12:
        user = rng.randrange(len(talk.scripts))
        script = talk.scripts[user]
        place = rng.randrange(1, len(script) + 1)
        erased = (*script[:place], Erase(), *script[place:])
        talk = replace(talk, scripts=(*talk.scripts[:user], erased, *talk.scripts[user + 1 :]))
    return talk


def _resolving(rng: random.Random, script: tuple[Step, ...]) -> tuple[Step, ...]:
    """With somebody who answers the calls, after some of what is said."""
    steps: list[Step] = []
    for step in script:
        steps.append(step)
        if isinstance(step, Say | Fork):
            steps += [_resolve(rng) for _ in range(rng.choice((0, 1, 1, 2)))]
    return tuple(steps)


def _resolve(rng: random.Random) -> Resolve:
    sampling = Sampling(max_tokens=rng.randint(1, 10), temperature=1.0, seed=rng.randrange(1 << 30))
    late = rng.choice((0.0, rng.uniform(0.0, 2.0)))
    go_on = rng.choice((None, sampling))
    return Resolve(late, rng.choice((0.5, 1.0)), rng.choice((0.0, 0.3)), rng.random() < 0.3, go_on)
