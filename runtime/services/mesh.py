"""`batonmesh.v1.Mesh` for users and `batonmesh.v1.Registry` for the mesh's own. Translate and delegate."""

from collections.abc import Awaitable, Callable

import grpc

from batonmesh.v1 import mesh_pb2 as pb
from batonmesh.v1 import mesh_pb2_grpc
from runtime.domain.messages import View
from runtime.errors import InvalidArgument, NotSupported, PermissionDenied
from runtime.ids import BootId, WorkerId
from runtime.roles.controller import ControllerRole
from runtime.services.access import calling
from runtime.services.guard import Context
from runtime.wire import fields
from runtime.wire.mesh import pack_view, unpack_worker

_LONGEST_GRACE_MS = 24 * 3600 * 1000


class MeshService(mesh_pb2_grpc.MeshServicer):
    """Answers from `view`, which a gateway and the controller both have; `drain` has a worker leave within seconds."""

    name = pb.DESCRIPTOR.services_by_name["Mesh"].full_name

    def __init__(self, view: Callable[[], View], drain: Callable[[WorkerId, float], Awaitable[None]]) -> None:
        self._view = view
        self._drain = drain

    def add_to(self, server: grpc.aio.Server) -> None:
        mesh_pb2_grpc.add_MeshServicer_to_server(self, server)

    async def Topology(self, _request: pb.TopologyRequest, _context: Context) -> pb.TopologyResponse:
        return pb.TopologyResponse(view=pack_view(self._view()))

    async def Drain(self, request: pb.DrainRequest, _context: Context) -> pb.DrainResponse:
        worker = WorkerId(fields.name(request.worker, "worker"))
        if request.grace_ms > _LONGEST_GRACE_MS:
            raise InvalidArgument(f"grace_ms is {request.grace_ms}, a day is the most", field="grace_ms")
        await self._drain(worker, request.grace_ms / 1000)
        return pb.DrainResponse()

    async def ExplainRoute(self, _request: pb.ExplainRouteRequest, _context: Context) -> pb.ExplainRouteResponse:
        raise NotSupported("only gateways place prompts: ask one of them")


class RegistryService(mesh_pb2_grpc.RegistryServicer):
    name = pb.DESCRIPTOR.services_by_name["Registry"].full_name

    def __init__(self, role: ControllerRole) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        mesh_pb2_grpc.add_RegistryServicer_to_server(self, server)

    async def Register(self, request: pb.RegisterRequest, _context: Context) -> pb.RegisterResponse:
        worker = unpack_worker(request.worker)
        _require_role(worker.role, "worker.role")
        leave_s = await self._role.register(worker)
        return pb.RegisterResponse(leave_ms=None if leave_s is None else round(leave_s * 1000))

    async def Leave(self, request: pb.LeaveRequest, _context: Context) -> pb.LeaveResponse:
        worker, boot = fields.name(request.worker, "worker"), fields.name(request.boot, "boot")
        for known in self._role.view().workers:
            if known.id == worker:
                _require_role(known.role, "worker")
        await self._role.leave(WorkerId(worker), BootId(boot))
        return pb.LeaveResponse()

    async def Watch(self, _request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        async for view in self._role.views():
            await context.write(pb.WatchResponse(view=pack_view(view)))


def _require_role(role: str, field: str) -> None:
    """A worker speaks for workers of its own role only."""
    caller = calling().role
    if caller is not None and caller != role:
        raise PermissionDenied(f"a {caller} worker has no say about {role} workers", field=field)
