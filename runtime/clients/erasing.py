"""Workers by gRPC, for whoever erases a session."""

import grpc

from batonmesh.v1 import erasure_pb2 as pb
from batonmesh.v1 import erasure_pb2_grpc
from runtime.clients.channels import Channels
from runtime.domain.identity import Role
from runtime.domain.messages import Worker
from runtime.domain.steps import Forgotten
from runtime.ids import SessionId
from runtime.kv.transport.failures import failure

_ANSWER_S = 5.0


class GrpcPageKeepers:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def keeper(self, worker: Worker) -> "GrpcPageKeeper":
        return GrpcPageKeeper(self._channels.to(worker.address, Role(worker.role)))


class GrpcPageKeeper:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = erasure_pb2_grpc.ErasureStub(channel)

    async def forget(self, session: SessionId) -> Forgotten:
        try:
            done = await self._stub.ForgetSession(pb.ForgetSessionRequest(session=session), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        return Forgotten(session, done.dropped, done.shared)
