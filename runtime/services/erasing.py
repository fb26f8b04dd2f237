"""`batonmesh.v1.Erasure`: a worker's face to whoever erases a session. Translates and delegates."""

from typing import Protocol

import grpc

from batonmesh.v1 import erasure_pb2 as pb
from batonmesh.v1 import erasure_pb2_grpc
from runtime.domain.steps import Forgotten
from runtime.ids import SessionId
from runtime.services.guard import Context
from runtime.wire import fields


class Forgets(Protocol):
    async def forget_session(self, session: SessionId) -> Forgotten: ...


class ErasureService(erasure_pb2_grpc.ErasureServicer):
    name = pb.DESCRIPTOR.services_by_name["Erasure"].full_name

    def __init__(self, role: Forgets) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        erasure_pb2_grpc.add_ErasureServicer_to_server(self, server)

    async def ForgetSession(self, request: pb.ForgetSessionRequest, _context: Context) -> pb.ForgetSessionResponse:
        session = SessionId(fields.name(request.session, "session", fields.MAX_SESSION))
        forgotten = await self._role.forget_session(session)
        return pb.ForgetSessionResponse(dropped=forgotten.dropped, shared=forgotten.shared)
