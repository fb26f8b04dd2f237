"""Transfers between two simulated processes, to one of which something happens before or after every single step.

Whatever lands is what was sent (invariant 8), no write reaches a slot of another, and once all is calm every slot is
free again (invariant 16), and the next transfers land.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from runtime.domain.landing import CommitArrived, Deliver, Incomplete, Landing, LandingEvent, LandingState
from runtime.domain.messages import Ticket, TicketPage
from runtime.domain.staging import SlotState
from runtime.domain.steps import Frame
from runtime.errors import BatonError, InvariantViolation
from runtime.ids import BootId, PageId, TransferId
from runtime.mesh.simulated.loop import VirtualLoop
from runtime.mesh.simulated.onesided import OneSidedSender, OneSidedTransport
from runtime.mesh.simulated.world import Process, Weather, World, cancel
from tests.kv.test_frames import SPEC
from tests.scale import scaled

PAGES, SLOTS, HOLD_S, PROGRESS_S, CALM_S = 4, 3, 3.0, 2.0, 30.0
NAMES = ("first", "second", "third")


def frame(name: str, index: int) -> Frame:
    """Pages of one index have one identity in all transfers, and other contents: a stale one is seen."""
    content = bytes([NAMES.index(name) * 16 + index + 1]) * SPEC.page_bytes
    return Frame(PageId(index.to_bytes(16)), index, SPEC.page_tokens, content)


async def for_ever() -> None:
    await asyncio.Event().wait()


@dataclass
class Play:
    """A sender and a receiver, each of which is started again after it died."""

    world: World
    transports: dict[str, OneSidedTransport] = field(default_factory=dict)
    landings: dict[str, Landing] = field(default_factory=dict)
    delivered: dict[str, dict[int, bytes]] = field(default_factory=dict)
    sending: "asyncio.Task[None] | None" = None
    every: list[OneSidedTransport] = field(default_factory=list)
    living: list[OneSidedTransport] = field(default_factory=list)

    def start(self, name: str) -> None:
        process = Process(self.world, name)
        process.run(for_ever())
        transport = OneSidedTransport(self.world, process, name, self.transports, SPEC, SLOTS, HOLD_S)
        self.transports[name] = transport
        self.every.append(transport)

    def there(self, name: str) -> OneSidedTransport:
        if not self.transports[name].process.alive:
            self.start(name)
        return self.transports[name]

    async def transfer(self, name: str) -> None:
        """Send `PAGES` pages as a prefill worker does, and take them as a decode worker does."""
        receiver, sender = self.there("receiver"), self.there("sender")
        pages = tuple(TicketPage(index, PageId(index.to_bytes(16)), SPEC.page_tokens) for index in range(PAGES))
        landing = self.landings[name] = Landing(TransferId(name), 1, pages)
        self.delivered[name] = {}
        over = asyncio.Event()

        def sink(event: LandingEvent) -> None:
            for command in landing.on(event):
                match command:
                    case Deliver(each):
                        self.delivered[name][each.index] = bytes(each.payload)
                    case Incomplete():
                        over.set()
                if isinstance(event, CommitArrived):
                    over.set()

        endpoint = receiver.expect(landing.transfer, 1, pages, sink)
        ticket = Ticket(
            landing.transfer, 1, BootId("boot"), "one-sided", endpoint, SPEC.kv_fingerprint, SPEC.dtype, pages, 60_000
        )
        self.sending = self.world.group.create_task(self._send(sender, ticket, name))
        sender.process.at_death(partial(cancel, self.sending))
        try:
            async with asyncio.timeout(PROGRESS_S):
                await over.wait()
        except TimeoutError:
            pass
        landing.abort()
        if landing.state is not LandingState.VERIFIED:
            self.fence(receiver, landing.transfer)

    def fence(self, receiver: OneSidedTransport, transfer: TransferId) -> None:
        """It lives as long as its process."""
        if receiver.process.alive:
            fencing = self.world.group.create_task(receiver.fence(transfer))
            receiver.process.at_death(partial(cancel, fencing))

    async def _send(self, sender: OneSidedTransport, ticket: Ticket, name: str) -> None:
        try:
            async with sender.open(ticket) as push:
                for index in range(PAGES):
                    await push.send(frame(name, index))
                await push.commit()
        except BatonError:
            pass

    def judge(self) -> None:
        assert not self.world.failures, self.world.failures
        for name, pages in self.delivered.items():
            for index, payload in pages.items():
                assert payload == frame(name, index).payload, "what landed is not what was sent (8)"
        assert len(self.living) == 2
        for transport in self.living:
            transport.staging.check()
            assert transport.staging.counts()[SlotState.FREE] == SLOTS, "a slot is still held (16)"
        assert self.landings[NAMES[-1]].state is LandingState.VERIFIED


def kill(who: str) -> Callable[[Play], None]:
    return lambda play: play.transports[who].process.kill()


def freeze(who: str) -> Callable[[Play], None]:
    return lambda play: play.transports[who].process.freeze(3.5)


def part(source: str, target: str) -> Callable[[Play], None]:
    def parted(play: Play) -> None:
        play.world.part(play.transports[source].process, play.transports[target].process, 2.5)

    return parted


def give_up(play: Play) -> None:
    """The receiver wants no more of the transfer that runs."""
    landing = [*play.landings.values()][-1]
    landing.abort()
    play.fence(play.transports["receiver"], landing.transfer)


def leave(play: Play) -> None:
    """The sender's call is cancelled."""
    if play.sending is not None:
        play.sending.cancel()


def nothing(play: Play) -> None:
    pass


HAPPENS: dict[str, Callable[[Play], None]] = {
    "the sender dies": kill("sender"),
    "the receiver dies": kill("receiver"),
    "the sender freezes": freeze("sender"),
    "the receiver freezes": freeze("receiver"),
    "nothing reaches the receiver": part("sender", "receiver"),
    "nothing reaches the sender": part("receiver", "sender"),
    "the receiver gives up": give_up,
    "the sender leaves": leave,
}
STORMY = Weather(straggle=0.2, lose=0.05, duplicate=0.2, corrupt=0.05)


def played(seed: int, weather: Weather, what: Callable[[Play], None], at: float) -> Play:
    """Two transfers in this weather, with something happening; then a calm, and a third."""

    async def run() -> Play:
        async with asyncio.TaskGroup() as group:
            world = World(seed, group)
            world.weather = weather
            play = Play(world)
            play.start("receiver")
            play.start("sender")
            world.loop.call_at(at, what, play)
            for name in NAMES[:-1]:
                await play.transfer(name)
            world.calm()
            await asyncio.sleep(CALM_S)
            await play.transfer(NAMES[-1])
            await asyncio.sleep(CALM_S)
            play.living = [transport for transport in play.every if transport.process.alive]
            for transport in play.living:
                transport.process.kill()
        return play

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


def steps_of(seed: int, weather: Weather, patch: pytest.MonkeyPatch) -> list[float]:
    """When something moves in the first two transfers."""
    times: set[float] = set()

    def noted(kind: Any, name: str) -> None:  # noqa: ANN401 - a class
        original = getattr(kind, name)

        def note(self: Any, *values: Any) -> None:  # noqa: ANN401
            times.add(asyncio.get_running_loop().time())
            original(self, *values)

        patch.setattr(kind, name, note)

    noted(World, "_arrive")
    noted(OneSidedSender, "_write")
    played(seed, weather, nothing, 0.0).judge()
    patch.undo()
    return sorted(time for time in times if time < CALM_S / 2)


@pytest.mark.parametrize("what", HAPPENS.values(), ids=HAPPENS)
@pytest.mark.parametrize("weather", [Weather(), STORMY], ids=["calm", "stormy"])
def test_whatever_happens_at_any_step_nothing_stale_lands_and_nothing_is_left(
    weather: Weather, what: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(scaled(1, 20)):
        steps = steps_of(seed, weather, monkeypatch)
        assert len(steps) > 20
        for time in steps:
            for at in (time - 1e-6, time + 1e-6):
                play = played(seed, weather, what, max(at, 0.0))
                try:
                    play.judge()
                except (AssertionError, InvariantViolation) as error:
                    pytest.fail(f"seed {seed}, {at:.6f} s: {error}")


def test_a_slot_that_is_given_on_before_its_writer_is_silent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the test above can fail."""

    async def fence(self: OneSidedTransport, transfer: TransferId) -> None:
        self._expected.pop(transfer, None)
        self.staging.release(transfer)

    weather, source = Weather(straggle=0.5), random.Random(0)
    steps = steps_of(0, weather, monkeypatch)
    monkeypatch.setattr(OneSidedTransport, "fence", fence)
    found = 0
    for _ in range(scaled(60, 300)):
        play = played(source.randrange(100), weather, give_up, source.choice(steps))
        found += any(isinstance(each, InvariantViolation) and each.number == 16 for each in play.world.failures)
    assert found
