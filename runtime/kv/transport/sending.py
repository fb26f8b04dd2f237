"""The sending end of one push over gRPC: frames under a window, then the commit, or the abort."""

from collections import deque

import grpc

from batonmesh.v1 import kv_pb2 as pb
from batonmesh.v1 import kv_pb2_grpc
from runtime.domain.messages import Ticket
from runtime.domain.steps import Frame
from runtime.errors import Unavailable
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.failures import failure, told
from runtime.wire.encoding import bytes_field_head

WINDOW_BYTES = 16 << 20
# Acknowledgements wait here unread until the window is full; with more of them their own flow control would stop.
WINDOW_MESSAGES = 256
_SERVICE = pb.DESCRIPTOR.services_by_name["Kv"].full_name
_ABORT_S = 1.0


class GrpcSender:
    """One transfer. Frames are written one a message; at most `WINDOW_BYTES` of them are unacknowledged.

    No task runs for it: writing and reading happen in whoever sends.
    """

    def __init__(self, ticket: Ticket, codec: FrameCodec, channel: grpc.aio.Channel) -> None:
        self._ticket = ticket
        self._seconds = ticket.remaining_ms / 1000
        self._codec = codec
        self._kv = kv_pb2_grpc.KvStub(channel)
        self._push: grpc.aio.StreamStreamCall[bytes, pb.PushResponse] = channel.stream_stream(
            f"/{_SERVICE}/Push", None, pb.PushResponse.FromString
        )(None, timeout=self._seconds)
        self._head = pb.PushRequest(transfer=ticket.transfer, epoch=ticket.epoch).SerializeToString()
        self._unacknowledged: deque[int] = deque()
        self._in_flight = 0
        self._frames = 0
        self.committed = False

    async def send(self, frame: Frame) -> None:
        header, payload = self._codec.header(frame), frame.payload
        size = len(header) + len(payload)
        while self._full(size):
            await self._acknowledgement()
        field = bytes_field_head(pb.PushRequest.FRAMES_FIELD_NUMBER, size)
        await told(self._push, self._push.write(b"".join((self._head, field, header, payload))))
        self._unacknowledged.append(size)
        self._in_flight += size
        self._frames += 1

    async def commit(self) -> None:
        while self._unacknowledged:
            await self._acknowledgement()
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
        self._push.cancel()

    def _full(self, size: int) -> bool:
        if not self._unacknowledged:
            return False
        return self._in_flight + size > WINDOW_BYTES or len(self._unacknowledged) >= WINDOW_MESSAGES

    async def _acknowledgement(self) -> None:
        answer = await told(self._push, self._push.read())
        if not isinstance(answer, pb.PushResponse):
            raise Unavailable("the receiver ended the push")
        self._in_flight -= self._unacknowledged.popleft()
