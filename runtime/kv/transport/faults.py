"""Misfortunes on purpose: a transport around the real one that drops, delays, spoils and dies, and when it does so.

Only there when BATON_FAULTS says so, as `send:drop:0.1,land:spoil:0.05,send:delay:1:0.2,prefill-0/commit:kill:@3`: for
one worker alone or for all, the point, what happens there, how often (a share, or @n for the n-th time alone) and, for
a delay, its seconds. With `@FILE` a file says so, which may change, appear and vanish while the mesh runs; who counts
times begins anew then. Each that happens is told in the worker's log before it does, as `fault=point:kind`.

    expect   a ticket is written              delay (blocks the process), kill, stop
    open     a sender begins                  delay, kill, stop
    send     a frame is handed to the path    drop, delay, spoil, kill, stop
    commit   the sender has sent all          delay, kill, stop
    land     a frame was verified             drop, spoil, delay (blocks), kill, stop
    fence    a transfer is given up           delay, kill, stop
    step     an engine's step has run         delay, kill, stop
"""

import asyncio
import enum
import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.domain.landing import FrameArrived, FrameCorrupt, LandingEvent
from runtime.domain.messages import Offer, Ticket, TicketPage
from runtime.domain.steps import Frame
from runtime.errors import ConfigError
from runtime.ids import TransferId
from runtime.ports import Sender, Transport

VARIABLE = "BATON_FAULTS"
_POINTS = {
    "expect": "delay kill stop",
    "open": "delay kill stop",
    "send": "drop delay spoil kill stop",
    "commit": "delay kill stop",
    "land": "drop spoil delay kill stop",
    "fence": "delay kill stop",
    "step": "delay kill stop",
}
_log = logging.getLogger(__name__)


class Kind(enum.Enum):
    DROP = "drop"
    DELAY = "delay"
    SPOIL = "spoil"
    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Fault:
    """At `point` of `worker`, or of all: with the chance `share`, or at the `nth` time alone."""

    worker: str
    point: str
    kind: Kind
    share: float
    nth: int
    seconds: float


class Faults:
    """Which faults happen when, as `said` says it each time anew. `happened` counts them by point and kind."""

    def __init__(self, said: Callable[[], tuple[Fault, ...]], source: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        self._said = said
        self._faults: tuple[Fault, ...] = ()
        self._source = source
        self._times: Counter[str] = Counter()

    def due(self, point: str) -> list[Fault]:
        """What happens now at a point."""
        if (said := self._said()) != self._faults:
            self._faults = said
            self._times.clear()
        self._times[point] += 1
        due = [fault for fault in self._faults if fault.point == point and self._strikes(fault)]
        for fault in due:
            name = f"{fault.point}:{fault.kind.value}"
            self.happened[name] += 1
            _log.warning("a fault on purpose", extra={"fault": name, "time": self._times[point]})
        return due

    def _strikes(self, fault: Fault) -> bool:
        return self._times[fault.point] == fault.nth if fault.nth else self._source.random() < fault.share


def read_faults(text: str, worker: str, source: random.Random) -> Faults:
    """Those of a worker. Raises `ConfigError` for what is no fault."""
    if text.startswith("@"):
        return Faults(_File(Path(text[1:]), worker), source)
    faults = _parsed(text, worker)
    return Faults(lambda: faults, source)


class _File:
    """What a file says; nothing while there is none. One that cannot be understood is told, and nothing of it done."""

    def __init__(self, path: Path, worker: str) -> None:
        self._path = path
        self._worker = worker
        self._changed = -1
        self._faults: tuple[Fault, ...] = ()

    def __call__(self) -> tuple[Fault, ...]:
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._changed:
                self._changed = changed
                self._faults = _parsed(self._path.read_text().strip(), self._worker)
        except FileNotFoundError:
            self._changed, self._faults = -1, ()
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            _log.warning("%s says no faults: %s", self._path, error)
            self._faults = ()
        return self._faults


def _parsed(text: str, worker: str) -> tuple[Fault, ...]:
    faults = (_parse(part.strip()) for part in text.split(",") if part.strip())
    return tuple(fault for fault in faults if fault.worker in ("", worker))


def _parse(part: str) -> Fault:
    try:
        *worker, what = part.split("/", 1)
        point, kind, often, *rest = what.split(":")
        if kind not in _POINTS[point].split():
            raise ValueError(f"{point} has no {kind}")
        nth = int(often[1:]) if often.startswith("@") else 0
        share, seconds = 0.0 if nth else float(often), float(rest[0]) if rest else 0.0
        return Fault("".join(worker), point, Kind(kind), share, nth, seconds)
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
        for fault in self._faults.due("open"):
            await suffer(fault)
        async with self._transport.open(ticket) as sender:
            yield _FaultySender(sender, self._faults)

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        for fault in self._faults.due("expect"):
            _suffer_at_once(fault)
        return self._transport.expect(transfer, epoch, pages, lambda event: self._landed(event, sink))

    async def fence(self, transfer: TransferId) -> None:
        for fault in self._faults.due("fence"):
            await suffer(fault)
        await self._transport.fence(transfer)

    def _landed(self, event: LandingEvent, sink: Callable[[LandingEvent], None]) -> None:
        for fault in self._faults.due("land") if isinstance(event, FrameArrived) else ():
            match fault.kind:
                case Kind.DROP:
                    return
                case Kind.SPOIL:
                    event = FrameCorrupt(event.transfer, event.epoch, None, "spoilt on purpose")
                case _:
                    _suffer_at_once(fault)
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
                await suffer(fault)
        await self._sender.send(frame)

    async def commit(self) -> None:
        for fault in self._faults.due("commit"):
            await suffer(fault)
        await self._sender.commit()

    async def abort(self) -> None:
        await self._sender.abort()


async def suffer(fault: Fault) -> None:
    """A delay, or the end of this process, or of its running."""
    if fault.kind is Kind.DELAY:
        await asyncio.sleep(fault.seconds)
    else:
        _strike(fault.kind)


def _suffer_at_once(fault: Fault) -> None:
    if fault.kind is Kind.DELAY:
        time.sleep(fault.seconds)
    else:
        _strike(fault.kind)


def _strike(kind: Kind) -> None:
    os.kill(os.getpid(), signal.SIGKILL if kind is Kind.KILL else signal.SIGSTOP)
