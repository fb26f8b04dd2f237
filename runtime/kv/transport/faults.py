"""Misfortunes of the KV plane on purpose: a transport around the real one that drops, delays, spoils and dies.

Only there when BATON_FAULTS says so, as `send:drop:0.1,land:spoil:0.05,send:delay:1:0.2,commit:kill:@3`: the point,
what happens there, how often (a share, or @n for the n-th time alone) and, for a delay, its seconds.

    send     a frame is handed to the path    drop, delay, spoil, kill, stop
    commit   the sender has sent all          delay, kill, stop
    land     a frame was verified             drop, spoil, delay, kill, stop (delay blocks the process)
    fence    a transfer is given up           delay, kill, stop
"""

import asyncio
import enum
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from runtime.domain.landing import FrameArrived, FrameCorrupt, LandingEvent
from runtime.domain.messages import Offer, Ticket, TicketPage
from runtime.domain.steps import Frame
from runtime.errors import ConfigError
from runtime.ids import TransferId
from runtime.ports import Sender, Transport

VARIABLE = "BATON_FAULTS"
_POINTS = {
    "send": "drop delay spoil kill stop",
    "commit": "delay kill stop",
    "land": "drop spoil delay kill stop",
    "fence": "delay kill stop",
}


class Kind(enum.Enum):
    DROP = "drop"
    DELAY = "delay"
    SPOIL = "spoil"
    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Fault:
    """At `point`: with the chance `share`, or at the `nth` time alone."""

    point: str
    kind: Kind
    share: float
    nth: int
    seconds: float


class Faults:
    """Which faults happen when. `happened` counts them by point and kind."""

    def __init__(self, faults: tuple[Fault, ...], source: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        self._faults = faults
        self._source = source
        self._times: Counter[str] = Counter()

    def due(self, point: str) -> list[Fault]:
        """What happens now at a point."""
        self._times[point] += 1
        due = [fault for fault in self._faults if fault.point == point and self._strikes(fault)]
        self.happened.update(f"{fault.point}:{fault.kind.value}" for fault in due)
        return due

    def _strikes(self, fault: Fault) -> bool:
        return self._times[fault.point] == fault.nth if fault.nth else self._source.random() < fault.share


def parse_faults(text: str, source: random.Random) -> Faults:
    """Raises `ConfigError` for what is no fault."""
    return Faults(tuple(_parse(part) for part in text.split(",") if part), source)


def _parse(part: str) -> Fault:
    try:
        point, kind, often, *rest = part.split(":")
        if kind not in _POINTS[point].split():
            raise ValueError(f"{point} has no {kind}")
        nth = int(often[1:]) if often.startswith("@") else 0
        return Fault(point, Kind(kind), 0.0 if nth else float(often), nth, float(rest[0]) if rest else 0.0)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{VARIABLE}: {part!r} is no fault: {error}") from error


class Faulty:
    """`ports.Transport`: another one, with faults."""

    def __init__(self, transport: Transport, faults: Faults) -> None:
        self._transport = transport
        self._faults = faults
        self.name = transport.name

    @property
    def offers(self) -> tuple[Offer, ...]:
        return self._transport.offers

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[Sender]:
        async with self._transport.open(ticket) as sender:
            yield _FaultySender(sender, self._faults)

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        return self._transport.expect(transfer, epoch, pages, lambda event: self._landed(event, sink))

    async def fence(self, transfer: TransferId) -> None:
        for fault in self._faults.due("fence"):
            await _suffer(fault)
        await self._transport.fence(transfer)

    def _landed(self, event: LandingEvent, sink: Callable[[LandingEvent], None]) -> None:
        for fault in self._faults.due("land") if isinstance(event, FrameArrived) else ():
            match fault.kind:
                case Kind.DROP:
                    return
                case Kind.SPOIL:
                    event = FrameCorrupt(event.transfer, event.epoch, None, "spoilt on purpose")
                case Kind.DELAY:
                    time.sleep(fault.seconds)
                case _:
                    _strike(fault.kind)
        sink(event)


class _FaultySender:
    def __init__(self, sender: Sender, faults: Faults) -> None:
        self._sender = sender
        self._faults = faults

    async def send(self, frame: Frame) -> None:
        for fault in self._faults.due("send"):
            if fault.kind is Kind.DROP:
                return
            if fault.kind is Kind.SPOIL:
                # Under the identity of another page: whoever trusted what arrives would keep it as that one.
                frame = replace(frame, payload=bytes(reversed(bytes(frame.payload))), index=frame.index + 1)
            else:
                await _suffer(fault)
        await self._sender.send(frame)

    async def commit(self) -> None:
        for fault in self._faults.due("commit"):
            await _suffer(fault)
        await self._sender.commit()

    async def abort(self) -> None:
        await self._sender.abort()


async def _suffer(fault: Fault) -> None:
    if fault.kind is Kind.DELAY:
        await asyncio.sleep(fault.seconds)
    else:
        _strike(fault.kind)


def _strike(kind: Kind) -> None:
    os.kill(os.getpid(), signal.SIGKILL if kind is Kind.KILL else signal.SIGSTOP)
