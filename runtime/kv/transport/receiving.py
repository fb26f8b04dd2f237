"""The receiving end of pushes over gRPC: the Kv service, which fills the transfers that are open here."""

from typing import Any

import grpc

from batonmesh.v1 import kv_pb2 as pb
from runtime.domain.landing import CommitArrived, SenderAborted
from runtime.errors import InvalidArgument
from runtime.kv.transport.arrivals import OpenTransfer, OpenTransfers
from runtime.wire.encoding import read_fields

NAME = "grpc"
_Context = grpc.aio.ServicerContext[Any, Any]


class KvService:
    """`batonmesh.v1.Kv`."""

    name = pb.DESCRIPTOR.services_by_name["Kv"].full_name

    def __init__(self, transfers: OpenTransfers) -> None:
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
                transfer, epoch, frames = self._read(data)
                found = self._transfers.find(transfer, epoch)
                if pushing is not None and pushing is not found:
                    self._transfers.refused["transfer"] += 1
                    raise InvalidArgument("a push is for one transfer", field="transfer")
                pushing = found
                self._land(pushing, frames, counts)
                await context.write(counts)
        finally:
            if pushing is not None and self._transfers.is_open(pushing):
                self._transfers.close(pushing.transfer)
                pushing.sink(SenderAborted(pushing.transfer, pushing.epoch, "the sender went away before its commit"))

    def _read(self, data: bytes) -> tuple[str, int, list[memoryview]]:
        try:
            return _read_push(data)
        except InvalidArgument:
            self._transfers.refused["message"] += 1
            raise

    def _land(self, transfer: OpenTransfer, frames: list[memoryview], counts: pb.PushResponse) -> None:
        for data in frames:
            if not self._transfers.is_open(transfer):
                return
            counts.frames += 1
            counts.corrupt += not self._transfers.land(transfer, data, NAME)

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
