"""One transfer by NIXL, as its sender has it: the window of granted slots, what is in flight, what is said of it."""

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

from batonmesh.v1 import nixl_pb2 as pb
from batonmesh.v1 import nixl_pb2_grpc
from runtime.domain.messages import Ticket
from runtime.domain.steps import Frame
from runtime.errors import BatonError, DeadlineExceeded, Incompatible, StaleAttempt, Unavailable
from runtime.kv.frames import HEADER_BYTES
from runtime.kv.transport.failures import told
from runtime.kv.transport.nixl.thread import Peer, Write

if TYPE_CHECKING:
    from runtime.kv.transport.nixl.sending import NixlWriters

_WRITE_S = 5.0
_QUIET_S = 1.0
_TOGETHER_BYTES = 4 << 20


class NixlSender:
    """A frame waits for a granted slot there and a free one here: that is its window."""

    def __init__(self, ticket: Ticket, writers: "NixlWriters", peer: Peer, channel: grpc.aio.Channel) -> None:
        self.transfer = ticket.transfer
        self.agent = peer.agent
        self.late = False
        self._ticket = ticket
        self._writers = writers
        self._peer = peer
        self._ends = time.monotonic() + ticket.remaining_ms / 1000
        self._call = nixl_pb2_grpc.NixlStub(channel).Write(None, timeout=ticket.remaining_ms / 1000)
        self._tasks: list[asyncio.Task[None]] = []
        self._free: list[int] = []
        self._granted = 0
        self._in_flight = 0
        self._frames = 0
        self._unsaid = 0
        self._over: BatonError | None = None
        self._closed = False
        self._committing = False
        self._committed = False
        self._changed = asyncio.Event()
        self._silent = asyncio.Event()
        self._saying = pb.WriteRequest()
        self._say = asyncio.Event()

    async def introduce(self, group: asyncio.TaskGroup) -> None:
        writers, ticket = self._writers, self._ticket
        self._saying.open.agent = writers.thread.name
        self._saying.open.address = writers.address
        self._saying.open.transfer = ticket.transfer
        self._saying.open.epoch = ticket.epoch
        self._say.set()
        self._tasks = [group.create_task(self._speak()), group.create_task(self._hear())]
        while not self._granted:
            await self._progress()

    async def send(self, frame: Frame) -> None:
        writers, length = self._writers, HEADER_BYTES + len(frame.payload)
        if length > min(self._peer.slot_bytes, writers.memory.slot_bytes):
            raise Incompatible(f"a frame of {len(frame.payload)} bytes is more than the receiver's slots hold")
        while not self._free or not writers.free:
            await self._progress()
        if self._over is not None:
            raise self._over
        source, target = writers.free.popleft(), self._free.pop()
        writers.codec.place(frame, writers.memory.slot(source))
        self._in_flight += 1
        self._frames += 1
        deadline = min(time.monotonic() + _WRITE_S, self._ends)

        def ended(error: BatonError | None) -> None:
            self._ended(source, target, length, error)

        writers.thread.post(Write(self._peer, source, target, length, deadline, ended, self._late))

    async def commit(self) -> None:
        while len(self._free) < self._granted:
            await self._progress()
        if self._over is None:
            self._committing = True
            self._say.set()
        while not self._committed:
            await self._progress()

    async def abort(self) -> None:
        """Wait for a moment until nothing is in flight, and say so. A receiver that heard nothing will ask."""
        if not self._committed:
            self._end(StaleAttempt("the transfer was given up here"))
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_QUIET_S)
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        self._closed = True
        self._settle()

    async def silence(self) -> None:
        self._end(StaleAttempt("the receiver gave the transfer up"))
        await self._silent.wait()

    def _ended(self, source: int, target: int, length: int, error: BatonError | None) -> None:
        """A write is over."""
        writers = self._writers
        writers.release(source)
        self._in_flight -= 1
        if error is None:
            self._saying.placed.add(slot=target, length=length)
            self._unsaid += length
        else:
            writers.part(self.agent)
            self._end(error)
        # A message costs as much as moving half a megabyte: while more are on their way, some go together.
        if self._unsaid >= _TOGETHER_BYTES or not self._in_flight:
            self._unsaid = 0
            self._say.set()
        self._settle()

    def _late(self) -> None:
        self.late = True
        self._end(DeadlineExceeded(f"a write of NIXL was not over within {_WRITE_S:g} s", field="ticket.remaining_ms"))

    def _settle(self) -> None:
        if self._over is not None and not self._in_flight:
            self._silent.set()
        if self._closed and not self._in_flight:
            self._writers.silent(self)

    def _end(self, error: BatonError) -> None:
        self._over = self._over or error
        self._changed.set()
        self._say.set()
        self._settle()

    async def _speak(self) -> None:
        """All that is said is said here, so that nothing is said twice at once."""
        try:
            while True:
                await self._say.wait()
                self._say.clear()
                saying, self._saying = self._saying, pb.WriteRequest()
                if self._over is not None:
                    saying.quiet = not self._in_flight
                elif self._committing:
                    saying.commit = self._frames
                if saying.ByteSize():
                    await told(self._call, self._call.write(saying))
                if saying.quiet or self._committing:
                    await told(self._call, self._call.done_writing())
                    return
        except BatonError as error:
            self._end(error)

    async def _hear(self) -> None:
        try:
            while isinstance(answer := await told(self._call, self._call.read()), pb.WriteResponse):
                self._on(answer)
            if not self._committed:
                raise Unavailable("the receiver is gone")
        except BatonError as error:
            self._end(error)

    def _on(self, answer: pb.WriteResponse) -> None:
        if answer.granted and not self._granted:
            # The last is taken first: a receiver lists those last that are warm in the cache.
            self._free, self._granted = list(answer.granted), len(answer.granted)
        self._free += answer.taken
        self._committed = self._committed or answer.committed
        if answer.stop:
            self._end(StaleAttempt("the receiver gave the transfer up"))
        self._changed.set()

    def freed(self) -> None:
        """A slot here is free again."""
        self._changed.set()

    async def _progress(self) -> None:
        """Wait until something changed; raises what ended the transfer."""
        if self._over is not None:
            raise self._over
        self._changed.clear()
        try:
            async with asyncio.timeout(max(self._ends - time.monotonic(), 0)):
                await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed during the transfer", field="ticket.remaining_ms") from None
        if self._over is not None:
            raise self._over
