"""The controller by gRPC: registering, leaving, and the views as they change. Outlives any controller."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc

from batonmesh.v1 import mesh_pb2 as pb
from batonmesh.v1 import mesh_pb2_grpc
from runtime.clients.channels import Channels
from runtime.clock import Clock
from runtime.domain.identity import Role
from runtime.domain.messages import View, Worker
from runtime.errors import BatonError
from runtime.ids import BootId, WorkerId
from runtime.kv.transport.failures import failure
from runtime.wire.mesh import pack_worker, unpack_view

_CALL_S = 5.0
_AGAIN_S = (0.2, 2.0)
_log = logging.getLogger(__name__)


class GrpcDirectory:
    def __init__(self, channels: Channels, address: str, clock: Clock) -> None:
        self._channels = channels
        self._address = address
        self._clock = clock

    async def register(self, worker: Worker) -> float | None:
        try:
            answer = await self._stub().Register(pb.RegisterRequest(worker=pack_worker(worker)), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

        return answer.leave_ms / 1000 if answer.HasField("leave_ms") else None

    async def drain(self, worker: WorkerId, grace_s: float) -> None:
        """Have a worker leave; raises what the controller says to it."""
        stub = mesh_pb2_grpc.MeshStub(self._channels.to(self._address, Role.CONTROLLER))
        try:
            await stub.Drain(pb.DrainRequest(worker=worker, grace_ms=round(grace_s * 1000)), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        try:
            await self._stub().Leave(pb.LeaveRequest(worker=worker, boot=boot), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    async def views(self) -> AsyncIterator[View]:
        """Never ends and never raises: without a controller there is only nothing new, and it is asked for again."""
        pause, longest = _AGAIN_S
        while True:
            try:
                async with aclosing(self._watch()) as watching:
                    async for view in watching:
                        pause = _AGAIN_S[0]
                        yield view
            except BatonError as error:
                _log.warning("the controller is lost: %s", error.message, extra={"controller": self._address})
            await self._clock.sleep(pause)
            pause = min(2 * pause, longest)

    def _stub(self) -> mesh_pb2_grpc.RegistryStub:
        """On the channel as it is now."""
        return mesh_pb2_grpc.RegistryStub(self._channels.to(self._address, Role.CONTROLLER))

    async def _watch(self) -> AsyncGenerator[View, None]:
        call = self._stub().Watch(pb.WatchRequest())
        try:
            while isinstance(message := await call.read(), pb.WatchResponse):
                yield unpack_view(message.view)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        finally:
            call.cancel()
