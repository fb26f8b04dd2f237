"""The other ends that the roles' tests hold in their hands: peers, streams and transports that do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from runtime.domain.landing import CommitArrived, FrameArrived, LandingEvent
from runtime.domain.messages import (
    AttemptFailed,
    GatewayCommand,
    Offer,
    Output,
    PrefillCall,
    PrefillDone,
    StepBatch,
    Ticket,
    TicketPage,
)
from runtime.domain.steps import Frame
from runtime.errors import BatonError, Unavailable
from runtime.ids import TransferId
from runtime.ports import DecodeStream, Sender


@dataclass(eq=False)
class Worker:
    """A decode worker as a gateway reaches it. `greeting` None: it accepts, and says nothing until a test does."""

    greeting: StepBatch | None = field(default_factory=lambda: StepBatch(()))
    connecting: asyncio.Event | None = None
    refuses: BatonError | None = None
    reads: bool = True
    commands: list[GatewayCommand] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    _batches: "asyncio.Queue[StepBatch | BatonError | None]" = field(default_factory=asyncio.Queue)

    def say(self, *outputs: Output | AttemptFailed) -> None:
        self._batches.put_nowait(StepBatch(outputs))

    def hang_up(self, error: BatonError | None = None) -> None:
        """End the stream, or break it with an error."""
        self._batches.put_nowait(error)

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[DecodeStream]:
        self.connections += 1
        if self.connecting is not None:
            await self.connecting.wait()
        if self.refuses is not None:
            raise self.refuses
        self._batches = asyncio.Queue()
        if self.greeting is not None:
            self._batches.put_nowait(self.greeting)
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    async def send(self, *commands: GatewayCommand) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.commands.extend(commands)

    async def batches(self) -> AsyncIterator[StepBatch]:
        while (item := await self._batches.get()) is not None:
            if isinstance(item, BatonError):
                raise item
            yield item


class Receiving:
    """A transport whose frames a test lets arrive. `fenced` are the transfers that were given up."""

    name = "by hand"
    offers: tuple[Offer, ...] = ()

    def __init__(self) -> None:
        self.pages: dict[TransferId, tuple[TicketPage, ...]] = {}
        self.fenced: list[TransferId] = []
        self._sinks: dict[TransferId, Callable[[LandingEvent], None]] = {}

    def open(self, ticket: Ticket) -> AbstractAsyncContextManager[Sender]:
        raise AssertionError("a decode worker pushes nothing")

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        self.pages[transfer] = pages
        self._sinks[transfer] = sink
        return "here"

    async def fence(self, transfer: TransferId) -> None:
        self.fenced.append(transfer)

    def arrive(self, ticket: Ticket, *frames: Frame) -> None:
        for frame in frames:
            self._sinks[ticket.transfer](FrameArrived(ticket.transfer, ticket.epoch, frame, self.name))

    def commit(self, ticket: Ticket, frames: int = 0) -> None:
        self._sinks[ticket.transfer](CommitArrived(ticket.transfer, ticket.epoch, frames))


@dataclass(eq=False)
class Prefilling:
    """A prefill worker as a decode worker reaches it: a test answers its calls."""

    calls: list[PrefillCall] = field(default_factory=list)
    cancelled: int = 0
    _answers: list["asyncio.Future[PrefillDone]"] = field(default_factory=list)

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        answer: asyncio.Future[PrefillDone] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        self._answers.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def done(self, done: PrefillDone) -> None:
        self._answers[-1].set_result(done)

    def fail(self, error: BatonError) -> None:
        self._answers[-1].set_exception(error)


class Pushing:
    """A transport that keeps what is pushed. `gate` holds back every frame while it is not set; `breaks_after` frames
    the path breaks."""

    name = "by hand"
    offers: tuple[Offer, ...] = ()

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.breaks_after = 1_000_000
        self.frames: list[Frame] = []
        self.committed: list[TransferId] = []
        self.aborted: list[TransferId] = []

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[Sender]:
        sender = _Sender(self, ticket)
        try:
            yield sender
        finally:
            if ticket.transfer not in self.committed:
                self.aborted.append(ticket.transfer)

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        raise AssertionError("nothing lands at a prefill worker")

    async def fence(self, transfer: TransferId) -> None:
        raise AssertionError("nothing lands at a prefill worker")


class _Sender:
    def __init__(self, transport: Pushing, ticket: Ticket) -> None:
        self._transport = transport
        self._ticket = ticket

    async def send(self, frame: Frame) -> None:
        await self._transport.gate.wait()
        if len(self._transport.frames) >= self._transport.breaks_after:
            raise Unavailable("the path broke")
        self._transport.frames.append(frame)

    async def commit(self) -> None:
        self._transport.committed.append(self._ticket.transfer)

    async def abort(self) -> None:
        raise AssertionError("leaving the context aborts")
