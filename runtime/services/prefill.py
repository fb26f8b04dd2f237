"""`batonmesh.v1.Prefill`. Translates and delegates; a caller that goes away cancels its prefill."""

import grpc

from batonmesh.v1 import worker_pb2 as pb
from batonmesh.v1 import worker_pb2_grpc
from runtime.roles.prefill import PrefillRole
from runtime.services.guard import Context
from runtime.wire.handoff import pack_prefill_done, unpack_prefill_call


class PrefillService(worker_pb2_grpc.PrefillServicer):
    name = pb.DESCRIPTOR.services_by_name["Prefill"].full_name

    def __init__(self, role: PrefillRole) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        worker_pb2_grpc.add_PrefillServicer_to_server(self, server)

    async def Prefill(self, request: pb.PrefillRequest, _context: Context) -> pb.PrefillResponse:
        return pack_prefill_done(await self._role.prefill(unpack_prefill_call(request)))
