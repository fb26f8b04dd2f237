"""A turn in flight on a gateway. Never decides anything."""

import asyncio
from typing import TYPE_CHECKING

from runtime.domain import turn as t
from runtime.domain.generation import Delta, Generation

if TYPE_CHECKING:
    from runtime.clock import Timer
    from runtime.domain.messages import Holder
    from runtime.domain.routing import Route
    from runtime.errors import BatonError
    from runtime.ids import BootId
    from runtime.roles.stream import Stream


class Live:
    """A turn in flight: its state table, its request, and the queue to its client."""

    def __init__(self, turn: t.Turn, generation: Generation, ends: float, bound: int) -> None:
        self.turn = turn
        self.generation = generation
        self.ends = ends
        self.queue: asyncio.Queue[Delta | BatonError] = asyncio.Queue(bound + 2)
        self.bound = bound
        self.exclude: frozenset[BootId] | None = None
        self.stream: Stream | None = None
        self.route: Route | None = None
        self.mirrors: tuple[Holder, ...] = ()
        self.heard = 0.0
        # Whether trying again is counted: it failed, and has given nothing yet.
        self.counted = False
        self.gave = False
        # By an earlier owner of the turn, if not here.
        self.gave_before = generation.claim is not None and bool(generation.claim.given)
        self.timers: dict[str, Timer] = {}
