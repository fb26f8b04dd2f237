"""`batonmesh.v1.Pages`: what a worker holds, for gateways. Translates and delegates."""

from contextlib import aclosing

import grpc

from batonmesh.v1 import pages_pb2 as pb
from batonmesh.v1 import pages_pb2_grpc
from runtime.roles.pages import PagesRole
from runtime.services.guard import Context
from runtime.wire.holdings import pack_changes


class PagesService(pages_pb2_grpc.PagesServicer):
    name = pb.DESCRIPTOR.services_by_name["Pages"].full_name

    def __init__(self, role: PagesRole) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        pages_pb2_grpc.add_PagesServicer_to_server(self, server)

    async def WatchPages(self, request: pb.WatchPagesRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        async with aclosing(self._role.changes(request.after)) as changes:
            async for each in changes:
                await context.write(pack_changes(each))
