"""The sending end of a transfer over gRPC: frames under a window, over one or two connections, then commit or abort."""

import asyncio
from collections import deque
from collections.abc import Sequence

import grpc

from batonmesh.v1 import kv_pb2 as pb
from batonmesh.v1 import kv_pb2_grpc
from runtime.domain.messages import Ticket
from runtime.domain.steps import Frame
from runtime.errors import BatonError, Unavailable
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.failures import failure, told
from runtime.wire.encoding import bytes_field_head

WINDOW_BYTES = 16 << 20
# Smaller messages cost more each, larger ones wait for memory that is no longer in the cache.
MESSAGE_BYTES = 2 << 20
# What the contract allows, over all connections; with more of them the flow control of acknowledgements would stop.
_WINDOW_MESSAGES = 256
_SERVICE = pb.DESCRIPTOR.services_by_name["Kv"].full_name
_ABORT_S = 1.0


class GrpcSender:
    """One transfer. What is sent waits in `outbox`; each lane takes as much of it as a message holds.

    At most `WINDOW_BYTES` wait or are unacknowledged, one frame of any size aside.
    """

    def __init__(self, ticket: Ticket, codec: FrameCodec, channels: Sequence[grpc.aio.Channel]) -> None:
        self._ticket = ticket
        self._codec = codec
        self._seconds = ticket.remaining_ms / 1000
        self._kv = kv_pb2_grpc.KvStub(channels[0])
        self._lanes = [_Lane(self, channel, self._seconds) for channel in channels]
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._bytes = 0
        self._messages = 0
        self._frames = 0
        self._error: BatonError | None = None
        self.head = pb.PushRequest(transfer=ticket.transfer, epoch=ticket.epoch).SerializeToString()
        self.outbox: deque[Frame] = deque()
        self.filled = asyncio.Event()
        self.committed = False

    def start(self, group: asyncio.TaskGroup) -> None:
        """The lanes run in `group` until `close`. They never raise: what breaks them comes out of `send`."""
        self._tasks = [group.create_task(run(lane)) for lane in self._lanes for run in (_Lane.write, _Lane.read)]

    async def send(self, frame: Frame) -> None:
        size = len(frame.payload)
        while self._bytes and self._bytes + size > WINDOW_BYTES:
            await self._progress()
        self._raise_error()
        self._bytes += size
        self._frames += 1
        self.outbox.append(frame)
        self.filled.set()
        if self._bytes >= MESSAGE_BYTES:
            # A message is full: whoever has frames ready one after the other lets it go.
            await asyncio.sleep(0)

    async def commit(self) -> None:
        while self._bytes:
            await self._progress()
        self._raise_error()
        ticket = self._ticket
        commit = pb.CommitRequest(transfer=ticket.transfer, epoch=ticket.epoch, frames=self._frames)
        try:
            await self._kv.Commit(commit, timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        self.committed = True

    async def abort(self) -> None:
        """A frame that is still on its way is refused by the receiver once it knows, so nothing has to be awaited."""
        ticket = self._ticket
        abort = pb.AbortRequest(transfer=ticket.transfer, epoch=ticket.epoch, reason="the sender gave up")
        try:
            await self._kv.Abort(abort, timeout=_ABORT_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        finally:
            self.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for lane in self._lanes:
            lane.close()

    def message(self) -> tuple[bytes, int]:
        """The next message, of at least one frame, and the bytes of payload in it."""
        parts: list[bytes | memoryview] = [self.head]
        size = 0
        while self.outbox and (not size or size + len(self.outbox[0].payload) <= MESSAGE_BYTES):
            frame = self.outbox.popleft()
            header = self._codec.header(frame)
            length = len(header) + len(frame.payload)
            parts += (bytes_field_head(pb.PushRequest.FRAMES_FIELD_NUMBER, length), header, frame.payload)
            size += len(frame.payload)
        return b"".join(parts), size

    async def take_turn(self) -> None:
        """Wait until there is something for a lane to write, and room for one more message."""
        while not self.outbox or self._messages >= _WINDOW_MESSAGES:
            self.filled.clear()
            await self.filled.wait()
        self._messages += 1

    def acknowledged(self, size: int) -> None:
        self._bytes -= size
        self._messages -= 1
        self.filled.set()
        self._changed.set()

    def broke(self, error: BatonError) -> None:
        self._error = self._error or error
        self._changed.set()

    async def _progress(self) -> None:
        self._raise_error()
        self._changed.clear()
        await self._changed.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class _Lane:
    """One Push call on a connection of its own: encoding for one fills the time that another waits."""

    def __init__(self, sender: GrpcSender, channel: grpc.aio.Channel, seconds: float) -> None:
        self._sender = sender
        self._call: grpc.aio.StreamStreamCall[bytes, pb.PushResponse] = channel.stream_stream(
            f"/{_SERVICE}/Push", None, pb.PushResponse.FromString
        )(None, timeout=seconds)
        self._unacknowledged: deque[int] = deque()
        self._wrote = asyncio.Event()

    async def write(self) -> None:
        try:
            while True:
                await self._sender.take_turn()
                message, size = self._sender.message()
                self._unacknowledged.append(size)
                self._wrote.set()
                await told(self._call, self._call.write(message))
        except BatonError as error:
            self._sender.broke(error)

    async def read(self) -> None:
        try:
            while True:
                # A read before the first write would wait for a connection that nothing needs yet.
                await self._wrote.wait()
                answer = await told(self._call, self._call.read())
                if not isinstance(answer, pb.PushResponse):
                    raise Unavailable("the receiver ended the push")
                self._sender.acknowledged(self._unacknowledged.popleft())
        except BatonError as error:
            self._sender.broke(error)

    def close(self) -> None:
        self._call.cancel()
