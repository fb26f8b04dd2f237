"""The Nixl service of a worker: calls of senders for its receiving end, and of receivers for its sending end."""

from typing import Any

import grpc

from batonmesh.v1 import nixl_pb2 as pb
from runtime.kv.transport.nixl.receiving import NixlReceiver
from runtime.kv.transport.nixl.sending import NixlWriters

_Context = grpc.aio.ServicerContext[Any, Any]


class NixlService:
    """`batonmesh.v1.Nixl`."""

    name = pb.DESCRIPTOR.services_by_name["Nixl"].full_name

    def __init__(self, receiver: NixlReceiver, writers: NixlWriters) -> None:
        self._receiver = receiver
        self._writers = writers

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Meet": grpc.unary_unary_rpc_method_handler(
                self.meet, pb.MeetRequest.FromString, pb.MeetResponse.SerializeToString
            ),
            "Write": grpc.stream_stream_rpc_method_handler(
                self.write, pb.WriteRequest.FromString, pb.WriteResponse.SerializeToString
            ),
            "Silence": grpc.unary_unary_rpc_method_handler(
                self.silence, pb.SilenceRequest.FromString, pb.SilenceResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.name, handlers),))

    async def meet(self, request: pb.MeetRequest, _context: _Context) -> pb.MeetResponse:
        return self._receiver.meet(request)

    async def write(self, _requests: object, context: _Context) -> None:
        await self._receiver.write(context)

    async def silence(self, request: pb.SilenceRequest, _context: _Context) -> pb.SilenceResponse:
        """At once when another generation is asked for: of that one nothing runs here."""
        name = self._writers.thread.name
        if request.agent == name:
            await self._writers.silence(request.transfer)
        return pb.SilenceResponse(agent=name)
