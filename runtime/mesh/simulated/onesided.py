"""A simulated one-sided transport: writes that arrive in the receiver's staging memory late, unasked, or damaged.

A posted write cannot be recalled, and it lands whether or not anybody still wants it: in parts, between which anything
may happen; or it is lost half-way, which its sender is told, or what announces it is, which nobody is told. The world
watches every part: one that lands in a slot which is not its transfer's breaks invariant 16. A few slots serve a whole
transfer, one frame after the other. Without free slots frames travel inside their announcements, as they do over grpc.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt, LandingEvent, SenderAborted
from runtime.domain.messages import Offer, Ticket, TicketPage
from runtime.domain.spec import ModelSpec
from runtime.domain.staging import Staging
from runtime.domain.steps import Frame
from runtime.errors import BatonError, DataCorrupt, StaleAttempt, Unavailable
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.mesh.simulated.world import Process, World, resolve
from runtime.ports import Sender

T = TypeVar("T")
_WINDOW = 4
_SLOTS = 3
_ASK_AGAIN_S = 1.0


@dataclass(slots=True)
class _Expected:
    epoch: int
    pages: tuple[TicketPage, ...]
    sink: Callable[[LandingEvent], None]
    writer: "OneSidedTransport | None" = None
    slots: tuple[int, ...] = ()


class OneSidedTransport:
    """Both ends on one worker. `hold_s` must exceed the longest time that a write of a dead process can take."""

    name = "one-sided"
    offers: tuple[Offer, ...] = ()

    def __init__(
        self,
        world: World,
        process: Process,
        address: str,
        others: Mapping[str, "OneSidedTransport"],
        spec: ModelSpec,
        slots: int,
        hold_s: float,
    ) -> None:
        self.world = world
        self.process = process
        self.codec = FrameCodec(spec)
        self.staging = Staging(slots)
        self.memory: list[bytes] = [b""] * slots
        self._address = address
        self._others = others
        self._hold_s = hold_s
        self._expected: dict[TransferId, _Expected] = {}
        self._senders: dict[TransferId, OneSidedSender] = {}

    # The receiving end

    def expect(
        self, transfer: TransferId, epoch: int, pages: tuple[TicketPage, ...], sink: Callable[[LandingEvent], None]
    ) -> str:
        self._expected[transfer] = _Expected(epoch, pages, sink)
        return self._address

    async def fence(self, transfer: TransferId) -> None:
        expected = self._expected.pop(transfer, None)
        if expected is None or expected.writer is None:
            return
        self.staging.quarantine(transfer)
        await self._silence(expected.writer, transfer)
        self.staging.release(transfer)

    def grant(self, transfer: TransferId, epoch: int, writer: "OneSidedTransport") -> tuple[int, ...]:
        """Slots for a writer that introduces itself; none when it has to send frames instead."""
        expected = self._expected.get(transfer)
        if expected is None or expected.epoch != epoch:
            raise StaleAttempt("the transfer is not expected here any more", field="ticket.epoch")
        expected.writer = writer
        count = min(len(expected.pages), _SLOTS, self.staging.free)
        expected.slots = (self.staging.try_grant(transfer, count) or ()) if count else ()
        return expected.slots

    def announced(self, transfer: TransferId, epoch: int, index: int, slot: int | None, data: bytes) -> None:
        """A frame is in a slot, or here: copy it out and check the copy."""
        expected = self._expected.get(transfer)
        if expected is None or expected.epoch != epoch:
            return
        copy = data if slot is None else self.memory[slot]
        try:
            frame = self.codec.decode(copy)
        except DataCorrupt as error:
            expected.sink(FrameCorrupt(transfer, epoch, index, error.message))
        else:
            expected.sink(FrameArrived(transfer, epoch, frame, self.name))

    def committed(self, transfer: TransferId, epoch: int, count: int) -> None:
        """The sender has nothing in flight and sends no more."""
        expected = self._expected.pop(transfer, None)
        if expected is not None:
            self.staging.release(transfer)
            expected.sink(CommitArrived(transfer, epoch, count))

    def aborted(self, transfer: TransferId, epoch: int) -> None:
        """The sender has nothing in flight and gave up; the fence that follows asks it once more."""
        expected = self._expected.get(transfer)
        if expected is not None:
            expected.sink(SenderAborted(transfer, epoch, "the sender gave up"))

    async def _silence(self, writer: "OneSidedTransport", transfer: TransferId) -> None:
        while writer.process.alive:
            quiet: asyncio.Future[None] = self.world.loop.create_future()
            self.world.deliver(self.process, writer.process, lambda quiet=quiet: writer.stop(transfer, self, quiet))  # type: ignore[misc]
            try:
                async with asyncio.timeout(_ASK_AGAIN_S):
                    await quiet
            except TimeoutError:
                continue
            return
        await self.process.sleep(self._hold_s)

    # The sending end

    def stop(self, transfer: TransferId, asker: "OneSidedTransport", quiet: "asyncio.Future[None]") -> None:
        """Post nothing more of a transfer; answer once nothing of it is in flight."""

        def answer() -> None:
            self.world.deliver(self.process, asker.process, lambda: resolve(quiet, None))

        sender = self._senders.get(transfer)
        if sender is None:
            answer()
        else:
            sender.stop(answer)

    @asynccontextmanager
    async def open(self, ticket: Ticket) -> AsyncIterator[Sender]:
        receiver = self._others.get(ticket.endpoint)
        if receiver is None or not receiver.process.alive:
            raise Unavailable("the receiver is gone")
        sender = OneSidedSender(self, receiver, ticket)
        self._senders[ticket.transfer] = sender
        try:
            await sender.introduce()
            yield sender
        finally:
            await sender.abort()
            del self._senders[ticket.transfer]


class OneSidedSender:
    def __init__(self, transport: OneSidedTransport, receiver: OneSidedTransport, ticket: Ticket) -> None:
        self._world = transport.world
        self._transport = transport
        self._receiver = receiver
        self._ticket = ticket
        self._free: list[int] = []
        self._slotted = False
        self._in_flight = 0
        self._unanswered: dict[int, int | None] = {}
        self._sent = 0
        self._done = False
        self._lost = False
        self._broken = False
        self._moved = asyncio.Event()
        self._when_quiet: list[Callable[[], None]] = []
        receiver.process.at_death(self._receiver_died)

    async def introduce(self) -> None:
        granted: asyncio.Future[tuple[int, ...]] = self._world.loop.create_future()
        self._tell(lambda: self._grant_there(granted))
        try:
            slots = await self._answer(granted)
            self._free = list(slots)
            self._slotted = bool(self._free)
        except BatonError:
            self._done = True
            raise

    async def send(self, frame: Frame) -> None:
        while len(self._unanswered) >= _WINDOW or (self._slotted and not self._free):
            if self._over():
                break
            await self._progress()
        if (error := self._over()) is not None:
            raise error
        data = self._damaged(self._transport.codec.encode(frame))
        self._sent += 1
        slot = self._unanswered[frame.index] = self._free.pop() if self._slotted else None
        if slot is None:
            self._announce(frame.index, None, data)
        else:
            self._in_flight += 1
            self._post(slot, frame.index, data, 0)

    async def commit(self) -> None:
        while self._unanswered and not self._lost and not self._broken:
            await self._progress()
        if (error := self._over()) is not None:
            raise error
        answered: asyncio.Future[None] = self._world.loop.create_future()
        self._tell(lambda: self._commit_there(answered))
        await self._answer(answered)
        self._done = True

    async def abort(self) -> None:
        """Nothing to do after a commit or a stop; else wait until nothing is in flight, and say so."""
        was_done, self._done = self._done, True
        while self._in_flight and not self._lost:
            await self._progress()
        if not was_done:
            ticket = self._ticket
            self._tell(lambda: self._receiver.aborted(ticket.transfer, ticket.epoch))

    def stop(self, when_quiet: Callable[[], None]) -> None:
        self._done = True
        self._when_quiet.append(when_quiet)
        self._step()

    def _over(self) -> BatonError | None:
        if self._lost:
            return Unavailable("the receiver is gone")
        if self._broken:
            return Unavailable("a write was lost")
        return StaleAttempt("the receiver gave up") if self._done else None

    def _post(self, slot: int, index: int, data: bytes, begin: int) -> None:
        self._world.loop.call_later(self._world.delay(), self._write, slot, index, data, begin)

    def _write(self, slot: int, index: int, data: bytes, begin: int) -> None:
        """A part of a frame, from byte `begin` on, reaches the receiver's memory; a frozen or parted writer's does so
        when it wakes or heals."""
        source, target = self._transport.process, self._receiver.process
        later = max(self._world.reachable_at(source, target), source.thaws)
        if later > self._world.loop.time():
            if source.alive:
                self._world.loop.call_at(later, self._write, slot, index, data, begin)
            return
        if self._world.chance(self._world.weather.lose):
            self._broken = True
            self._in_flight -= 1
            self._step()
            return
        end = len(data) if self._world.chance(0.5) else self._world.rng.randrange(begin, len(data)) + 1
        if target.alive:
            owner = self._receiver.staging.writer(slot)
            if owner != self._ticket.transfer:
                self._world.violated(16, f"a write of {self._ticket.transfer} landed in slot {slot} of {owner}")
            was = self._receiver.memory[slot]
            self._receiver.memory[slot] = was[:begin] + data[begin:end] + was[end:]
        if end < len(data):
            self._post(slot, index, data, end)
            return
        self._in_flight -= 1
        if not self._done:
            self._announce(index, slot, b"")
        self._step()

    def _announce(self, index: int, slot: int | None, data: bytes) -> None:
        times = 2 if self._world.chance(self._world.weather.duplicate) else 1
        for _ in range(times):
            if self._world.chance(self._world.weather.lose):
                continue
            self._tell(lambda: self._announce_there(index, slot, data))

    def _announce_there(self, index: int, slot: int | None, data: bytes) -> None:
        self._receiver.announced(self._ticket.transfer, self._ticket.epoch, index, slot, data)
        self._reply(lambda: self._answered(index))

    def _commit_there(self, answered: "asyncio.Future[None]") -> None:
        self._receiver.committed(self._ticket.transfer, self._ticket.epoch, self._sent)
        self._reply(lambda: resolve(answered, None))

    def _answered(self, index: int) -> None:
        """A late answer to an announcement that came twice gives no slot back once more."""
        slot = self._unanswered.pop(index, None)
        if slot is not None:
            self._free.append(slot)
        self._step()

    def _damaged(self, data: bytes) -> bytes:
        if not self._world.chance(self._world.weather.corrupt):
            return data
        place = self._world.rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << self._world.rng.randrange(8))]) + data[place + 1 :]

    def _tell(self, call: Callable[[], None]) -> None:
        self._world.deliver(self._transport.process, self._receiver.process, call)

    def _grant_there(self, answer: "asyncio.Future[tuple[int, ...]]") -> None:
        try:
            slots = self._receiver.grant(self._ticket.transfer, self._ticket.epoch, self._transport)
        except StaleAttempt as error:
            self._reply(lambda error=error: _refuse(answer, error))  # type: ignore[misc]
        else:
            self._reply(lambda: resolve(answer, slots))

    def _reply(self, call: Callable[[], None]) -> None:
        self._world.deliver(self._receiver.process, self._transport.process, call)

    async def _answer(self, answer: "asyncio.Future[T]") -> "T":
        while not answer.done():
            if self._lost:
                raise Unavailable("the receiver is gone")
            answer.add_done_callback(lambda _: self._moved.set())
            await self._progress()
        if self._done:
            raise StaleAttempt("the receiver gave up")
        return answer.result()

    async def _progress(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _receiver_died(self) -> None:
        self._lost = True
        self._step()

    def _step(self) -> None:
        self._moved.set()
        if not self._in_flight:
            for call in self._when_quiet:
                call()
            self._when_quiet.clear()


def _refuse(answer: "asyncio.Future[tuple[int, ...]]", error: BatonError) -> None:
    if not answer.done():
        answer.set_exception(error)
        # Marks it as seen: whoever asked may have been cancelled meanwhile.
        answer.exception()
