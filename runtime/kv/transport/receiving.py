"""The receiving end of pushes over gRPC: which transfers are open here, and the Kv service that fills them.

Keeps nothing of a transfer that is not open, and never decides what becomes of a frame: that is the sink's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from batonmesh.v1 import kv_pb2 as pb
from runtime.domain.landing import CommitArrived, FrameArrived, FrameCorrupt, LandingEvent, SenderAborted
from runtime.errors import DataCorrupt, InvalidArgument, StaleAttempt
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.wire.encoding import read_fields

Sink = Callable[[LandingEvent], None]
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class OpenTransfer:
    transfer: TransferId
    epoch: int
    sink: Sink


class OpenTransfers:
    """The transfers that may land on this worker now."""

    def __init__(self) -> None:
        self._open: dict[str, OpenTransfer] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, transfer: TransferId, epoch: int, sink: Sink) -> None:
        assert transfer not in self._open, f"{transfer} is open already"
        self._open[transfer] = OpenTransfer(transfer, epoch, sink)

    def find(self, transfer: str, epoch: int) -> OpenTransfer:
        """Raises `StaleAttempt` saying why when it may not land."""
        found = self._open.get(transfer)
        if found is None:
            raise StaleAttempt(f"transfer {transfer[:128]} is not open here: closed, or never opened", field="transfer")
        if found.epoch != epoch:
            raise StaleAttempt(f"transfer {transfer} is open with epoch {found.epoch}, not {epoch}", field="epoch")
        return found

    def take(self, transfer: str, epoch: int) -> OpenTransfer:
        """Find and close it."""
        found = self.find(transfer, epoch)
        del self._open[transfer]
        return found

    def close(self, transfer: str) -> None:
        self._open.pop(transfer, None)

    def is_open(self, transfer: OpenTransfer) -> bool:
        return self._open.get(transfer.transfer) is transfer


class KvService:
    """`batonmesh.v1.Kv`."""

    name = pb.DESCRIPTOR.services_by_name["Kv"].full_name

    def __init__(self, codec: FrameCodec, transfers: OpenTransfers) -> None:
        self._codec = codec
        self._transfers = transfers

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            # The messages are large: they are read where they are, without a copy as an object.
            "Push": grpc.stream_stream_rpc_method_handler(
                self.push, response_serializer=pb.PushResponse.SerializeToString
            ),
            "Commit": grpc.unary_unary_rpc_method_handler(
                self.commit, pb.CommitRequest.FromString, pb.CommitResponse.SerializeToString
            ),
            "Abort": grpc.unary_unary_rpc_method_handler(
                self.abort, pb.AbortRequest.FromString, pb.AbortResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.name, handlers),))

    async def push(self, _requests: object, context: _Context) -> None:
        counts = pb.PushResponse()
        pushing: OpenTransfer | None = None
        try:
            while isinstance(data := await context.read(), bytes):
                transfer, epoch, frames = _read_push(data)
                found = self._transfers.find(transfer, epoch)
                if pushing is not None and pushing is not found:
                    raise InvalidArgument("a push is for one transfer", field="transfer")
                pushing = found
                self._land(pushing, frames, counts)
                await context.write(counts)
        finally:
            if pushing is not None and self._transfers.is_open(pushing):
                self._transfers.close(pushing.transfer)
                pushing.sink(SenderAborted(pushing.transfer, pushing.epoch, "the sender went away before its commit"))

    def _land(self, transfer: OpenTransfer, frames: list[memoryview], counts: pb.PushResponse) -> None:
        for data in frames:
            if not self._transfers.is_open(transfer):
                return
            counts.frames += 1
            try:
                frame = self._codec.decode(data)
            except DataCorrupt as error:
                counts.corrupt += 1
                transfer.sink(FrameCorrupt(transfer.transfer, transfer.epoch, None, error.message))
            else:
                transfer.sink(FrameArrived(transfer.transfer, transfer.epoch, frame))

    async def commit(self, request: pb.CommitRequest, _context: _Context) -> pb.CommitResponse:
        transfer = self._transfers.take(request.transfer, request.epoch)
        transfer.sink(CommitArrived(transfer.transfer, transfer.epoch, request.frames))
        return pb.CommitResponse()

    async def abort(self, request: pb.AbortRequest, _context: _Context) -> pb.AbortResponse:
        transfer = self._transfers.take(request.transfer, request.epoch)
        transfer.sink(SenderAborted(transfer.transfer, transfer.epoch, request.reason[:4096]))
        return pb.AbortResponse()


def _read_push(data: bytes) -> tuple[str, int, list[memoryview]]:
    """Transfer, epoch and frames of an encoded PushRequest; the frames are views into `data`."""
    transfer, epoch = "", 0
    frames: list[memoryview] = []
    for number, value in read_fields(memoryview(data)):
        match number, value:
            case pb.PushRequest.TRANSFER_FIELD_NUMBER, memoryview():
                transfer = str(value, "utf-8", "replace")
            case pb.PushRequest.EPOCH_FIELD_NUMBER, int():
                epoch = value
            case pb.PushRequest.FRAMES_FIELD_NUMBER, memoryview():
                frames.append(value)
    return transfer, epoch, frames
