"""Workers with profiles, and a directory that says what a test wants."""

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.domain.messages import View, Worker
from runtime.domain.pages import Occupancy
from runtime.domain.profile import Profile
from runtime.domain.routing import DECODE, PREFILL, Asked
from runtime.domain.steps import Load
from runtime.ids import BootId, TenantId, WorkerId
from runtime.router.cost import CostRouter, Model
from runtime.router.holders import Held

TENANT = TenantId("default")
MODEL = Model(token_bytes=100_000, page_tokens=32)
ROOM = Occupancy(free=100_000, landing=0, owned=0, cached=0)


def profile(token_ms: float = 0.1, step_ms: float = 10.0, links: Mapping[str, float] | None = None) -> Profile:
    """A prompt's token takes so long, a step so long and a hundredth more for each sequence in it."""
    decode = tuple((batch, step_ms * (1 + batch / 100)) for batch in (1, 2, 4, 8, 16, 32))
    return Profile(((1024, 1024 * token_ms),), decode, tuple((links or {}).items()))


def worker(
    name: str,
    role: str,
    speed: Profile | None = None,
    *,
    running: int = 0,
    waiting: int = 0,
    todo: int = 0,
    host: str = "here",
    pages: Occupancy = ROOM,
) -> Worker:
    load = Load(running, waiting, 0, todo, pages)
    told = profile() if speed is None else speed
    boot = BootId(f"boot-{name}")
    return Worker(WorkerId(name), boot, role, f"{host}:1", "m", "k", "s", 131_072, 32, "cpu x1", load, profile=told)


def decode(name: str, speed: Profile | None = None, **more: object) -> Worker:
    return worker(name, DECODE, speed, **more)  # type: ignore[arg-type]


def prefill(name: str, speed: Profile | None = None, **more: object) -> Worker:
    return worker(name, PREFILL, speed, **more)  # type: ignore[arg-type]


class Said:
    """Holds what the test says: tokens by the worker's name and, for other tiers, by its name and the tier's."""

    def __init__(self, **tokens: int) -> None:
        self.tokens = tokens
        self.asked = 0

    def held(self, asked: Asked, boots: Sequence[BootId]) -> Held | None:
        self.asked += 1
        if not self.tokens:
            return None
        names = [boot.removeprefix("boot-") for boot in boots]
        pool = np.array([self.tokens.get(name, 0) for name in names])
        host = np.array([self.tokens.get(f"{name}_host", 0) for name in names])
        cold = np.full(len(names), self.tokens.get("cold", 0))
        return Held(pool, np.maximum(pool, host), np.maximum(np.maximum(pool, host), cold))


def router(*workers: Worker, said: Said | None = None, fixed: bool = False) -> CostRouter:
    made = CostRouter(MODEL, said or Said(), fixed=fixed)
    made.see(View(1, 1, workers), 0.0)
    return made


def asked(
    tokens: int,
    more: int = 1,
    in_flight: Mapping[BootId, int] | None = None,
    exclude: frozenset[BootId] = frozenset(),
    near: BootId | None = None,
) -> Asked:
    return Asked(TENANT, range(tokens), more, in_flight or {}, exclude, near)
