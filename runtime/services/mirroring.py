"""`batonmesh.v1.Mirror`. Translates and delegates; a caller that goes away cancels its call."""

import grpc

from batonmesh.v1 import mirror_pb2 as pb
from batonmesh.v1 import mirror_pb2_grpc
from runtime.roles.holding import HoldingRole
from runtime.services.guard import Context
from runtime.wire.mirroring import pack_fetched, pack_kept, unpack_fetch_call, unpack_keep_call


class MirrorService(mirror_pb2_grpc.MirrorServicer):
    name = pb.DESCRIPTOR.services_by_name["Mirror"].full_name

    def __init__(self, role: HoldingRole) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        mirror_pb2_grpc.add_MirrorServicer_to_server(self, server)

    async def Keep(self, request: pb.KeepRequest, _context: Context) -> pb.KeepResponse:
        return pack_kept(await self._role.keep(unpack_keep_call(request)))

    async def Fetch(self, request: pb.FetchRequest, _context: Context) -> pb.FetchResponse:
        return pack_fetched(await self._role.fetch(unpack_fetch_call(request)))
