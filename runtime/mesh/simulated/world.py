"""The simulated world: processes that die and freeze, and a network that delays, parts and resets. All from one seed.

Everything that crosses between processes goes through `World.deliver`, so nothing of a dead process gets out and
nothing happens inside a frozen one.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.clock import Timer
from runtime.errors import InvariantViolation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to a message: seconds of delay, and the chance of each misfortune."""

    delay_s: float = 0.002
    jitter_s: float = 0.004
    straggle: float = 0.02
    straggle_s: float = 0.4
    lose: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0


class Process:
    """One process of the mesh; also its clock, since a frozen process sees no time pass. `ahead_s` is how far that
    clock is before the world's, `leaving` whether it has said that it leaves the mesh."""

    def __init__(self, world: "World", name: str, ahead_s: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.leaving = False
        self.thaws = 0.0
        self.ahead_s = ahead_s
        self.world = world
        self._main: asyncio.Task[None] | None = None
        self._at_death: list[Callable[[], None]] = []

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Start the process; that it fails by itself is a bug, and recorded as one."""
        self._main = self.world.group.create_task(self._root(main))

    def kill(self) -> None:
        """As by SIGKILL: what its cleanup still tries to send goes nowhere."""
        if self.alive:
            self.alive = False
            assert self._main is not None
            self._main.cancel()
            for call in self._at_death:
                call()

    async def stop(self) -> None:
        """As by SIGTERM: its cleanup is heard, then it is gone."""
        assert self._main is not None
        self._main.cancel()
        await asyncio.wait((self._main,))
        self.kill()

    async def ended(self) -> None:
        """Wait until it has ended, by itself or not."""
        assert self._main is not None
        await asyncio.wait((self._main,))

    def freeze(self, seconds: float) -> None:
        """As by SIGSTOP, and SIGCONT later."""
        self.thaws = self.world.loop.time() + seconds

    def at_death(self, call: Callable[[], None]) -> None:
        self._at_death.append(call)

    def when_awake(self, call: Callable[[], None]) -> None:
        """Call now, or once thawed, or never."""
        if self.alive and self.thaws > self.world.loop.time():
            self.world.loop.call_at(self.thaws, self.when_awake, call)
        elif self.alive:
            call()

    def now(self) -> float:
        return self.world.loop.time() + self.ahead_s

    async def sleep(self, seconds: float) -> None:
        awake: asyncio.Future[None] = self.world.loop.create_future()
        timer = self.call_later(seconds, lambda: resolve(awake, None))
        try:
            await awake
        finally:
            timer.cancel()

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = _ProcessTimer(call)
        timer.handle = self.world.loop.call_later(seconds, self.when_awake, timer.fire)
        return timer

    async def _root(self, main: Coroutine[Any, Any, None]) -> None:
        try:
            await main
        except Exception as error:  # noqa: BLE001 - the root of a simulated process
            if self.alive:
                self.world.report(error)


class _ProcessTimer:
    """One that comes due in a frozen process can still be cancelled by what the process does first when it thaws."""

    handle: asyncio.TimerHandle

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def fire(self) -> None:
        if self._call is not None:
            self._call()

    def cancel(self) -> None:
        self._call = None
        self.handle.cancel()


def resolve(future: "asyncio.Future[T]", value: T) -> None:
    """Answer, unless it was answered or given up before."""
    if not future.done():
        future.set_result(value)


def cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


class World:
    def __init__(self, seed: int, group: asyncio.TaskGroup) -> None:
        self.rng = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.group = group
        self.weather = Weather()
        self.failures: list[BaseException] = []
        self.trace: list[str] | None = None
        self._parted: dict[tuple[str, str], float] = {}
        self.loop.set_exception_handler(self._unhandled)

    def report(self, error: BaseException) -> None:
        self.failures.extend(flatten(error))

    def violated(self, number: int, message: str) -> None:
        self.failures.append(InvariantViolation(number, message))

    def say(self, who: str, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():9.4f}  {who:<12} {text}")

    def part(self, source: Process, target: Process, seconds: float) -> None:
        """Let nothing pass from one process to another for a while; what was sent arrives after it."""
        self._parted[source.name, target.name] = self.loop.time() + seconds

    def calm(self) -> None:
        """No more misfortune from now on, and every partition heals."""
        self.weather = Weather(straggle=0.0)
        self._parted.clear()

    def reachable_at(self, source: Process, target: Process) -> float:
        return self._parted.get((source.name, target.name), 0.0)

    def silent(self, source: Process, target: Process) -> bool:
        """Whether not even a ping of the source would be heard by the target now."""
        now = self.loop.time()
        parted = max(self.reachable_at(source, target), self.reachable_at(target, source)) > now
        return parted or not source.alive or source.thaws > now

    def delay(self) -> float:
        weather = self.weather
        delay = weather.delay_s + self.rng.random() * weather.jitter_s
        return delay + self.rng.random() * weather.straggle_s if self.chance(weather.straggle) else delay

    def chance(self, share: float) -> bool:
        return share > 0 and self.rng.random() < share

    def deliver(self, source: Process, target: Process, call: Callable[[], None]) -> None:
        """Run `call` in the target after the network's delay."""
        if source.alive:
            when = max(self.loop.time() + self.delay(), self.reachable_at(source, target))
            self.loop.call_at(when, self._arrive, source, target, call)

    def _arrive(self, source: Process, target: Process, call: Callable[[], None]) -> None:
        later = self.reachable_at(source, target)
        if later > self.loop.time():
            self.loop.call_at(later, self._arrive, source, target, call)
        else:
            target.when_awake(call)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.report(error if isinstance(error, BaseException) else AssertionError(context["message"]))


def flatten(error: BaseException) -> list[BaseException]:
    """The single errors inside nested exception groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in flatten(inner)]
    return [error]
