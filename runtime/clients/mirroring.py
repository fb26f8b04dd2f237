"""Workers by gRPC, for those who have them hold pages or fetch pages from them."""

import grpc

from batonmesh.v1 import mirror_pb2_grpc
from runtime.clients.channels import Channels
from runtime.domain.identity import Role
from runtime.domain.messages import Holder
from runtime.domain.mirroring import FetchCall, Fetched, KeepCall, Kept
from runtime.kv.transport.failures import failure
from runtime.wire.mirroring import pack_fetch_call, pack_keep_call, unpack_fetched, unpack_kept


class GrpcMirrorPeers:
    """`ports.MirrorPeers`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def holder(self, holder: Holder) -> "GrpcMirrorPeer":
        return GrpcMirrorPeer(self._channels.to(holder.address, Role(holder.role)))


class GrpcMirrorPeer:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = mirror_pb2_grpc.MirrorStub(channel)

    async def keep(self, call: KeepCall) -> Kept:
        try:
            return unpack_kept(await self._stub.Keep(pack_keep_call(call), timeout=call.remaining_ms / 1000))
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    async def fetch(self, call: FetchCall) -> Fetched:
        seconds = call.ticket.remaining_ms / 1000
        try:
            return unpack_fetched(await self._stub.Fetch(pack_fetch_call(call), timeout=seconds))
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
