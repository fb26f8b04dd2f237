"""The other workers by gRPC: calls out, answers and errors in. Keeps no state beside the shared channels."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc

from batonmesh.v1 import pages_pb2, pages_pb2_grpc, worker_pb2_grpc
from batonmesh.v1 import worker_pb2 as pb
from runtime.clients.channels import Channels
from runtime.domain.holdings import Changes
from runtime.domain.identity import Role
from runtime.domain.messages import GatewayCommand, Hello, PrefillCall, PrefillDone, StepBatch
from runtime.errors import Unavailable
from runtime.ids import GatewayId
from runtime.kv.transport.failures import failure, told
from runtime.wire.decode import pack_command, pack_commands, unpack_batch
from runtime.wire.handoff import pack_prefill_call, unpack_prefill_done
from runtime.wire.holdings import unpack_changes


class GrpcPeers:
    """`caller` is what decode workers are told about whose stream it is."""

    def __init__(self, channels: Channels, caller: GatewayId) -> None:
        self._channels = channels
        self._caller = caller

    def prefill(self, address: str) -> "GrpcPrefillPeer":
        return GrpcPrefillPeer(self._channels.to(address, Role.PREFILL))

    def decode(self, address: str) -> "GrpcDecodePeer":
        return GrpcDecodePeer(self._channels, address, self._caller)


class GrpcPages:
    """`ports.PageSources`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def pages(self, address: str, role: str, after: int) -> AsyncGenerator[Changes, None]:
        stub = pages_pb2_grpc.PagesStub(self._channels.to(address, Role(role)))
        call = stub.WatchPages(pages_pb2.WatchPagesRequest(after=after))
        try:
            while isinstance(message := await call.read(), pages_pb2.WatchPagesResponse):
                yield unpack_changes(message)
            raise Unavailable("the worker ended the stream")
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        finally:
            call.cancel()


class GrpcPrefillPeer:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = worker_pb2_grpc.PrefillStub(channel)

    async def prefill(self, call: PrefillCall) -> PrefillDone:
        try:
            done = await self._stub.Prefill(pack_prefill_call(call), timeout=call.ticket.remaining_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        return unpack_prefill_done(done)


class GrpcDecodePeer:
    def __init__(self, channels: Channels, address: str, caller: GatewayId) -> None:
        self._channels = channels
        self._address = address
        self._caller = caller

    @asynccontextmanager
    async def attach(self) -> AsyncIterator["GrpcDecodeStream"]:
        """Entering never waits: the connection is made by the first read, under whatever deadline that has."""
        stub = worker_pb2_grpc.DecodeStub(self._channels.to(self._address, Role.DECODE))
        call: grpc.aio.StreamStreamCall[pb.DecodeCommand, pb.StepBatch] = stub.Attach(None)
        try:
            yield GrpcDecodeStream(call, self._caller)
        finally:
            call.cancel()


class GrpcDecodeStream:
    """Read before it is written to: reading says hello. It has no deadline of its own; it lives until it is left, and
    the worker's heartbeats tell whether it still does."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.DecodeCommand, pb.StepBatch], caller: GatewayId) -> None:
        self._call = call
        self._caller = caller

    async def send(self, *commands: GatewayCommand) -> None:
        for message in pack_commands(commands):
            await told(self._call, self._call.write(message))

    async def batches(self) -> AsyncIterator[StepBatch]:
        await told(self._call, self._call.write(pack_command(Hello(self._caller))))
        while isinstance(message := await told(self._call, self._call.read()), pb.StepBatch):
            yield unpack_batch(message)
        raise Unavailable("the decode worker ended the stream")
