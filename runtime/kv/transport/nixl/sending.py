"""The sending end of NIXL: connections to receivers, and the transfers over them.

A frame is copied into memory that NIXL may read, posted by the thread that owns the agent, and announced by gRPC once
NIXL says that it is there. What was posted stays counted until it is over, whatever became of its transfer.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from batonmesh.v1 import nixl_pb2 as pb
from batonmesh.v1 import nixl_pb2_grpc
from runtime.domain.messages import Ticket
from runtime.domain.routing import DECODE
from runtime.errors import BatonError, ResourceExhausted, Unavailable
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.failures import failure
from runtime.kv.transport.nixl.memory import DOORMAT_BYTES, HOST, Memory, Region
from runtime.kv.transport.nixl.pushing import NixlSender
from runtime.kv.transport.nixl.thread import AgentThread, Peer
from runtime.scope import Scope

_MEET_S = 10.0
_MEET_AGAIN_S = 10.0
_KEPT = 1024


class NixlWriters:
    """`address` is where this worker can be asked to be silent; `channel` gives the channel to a receiver; `start`
    starts what makes connections. Frames leave from `memory`, which the thread knows."""

    def __init__(
        self,
        codec: FrameCodec,
        thread: AgentThread,
        memory: Memory,
        address: str,
        channel: Callable[[str], grpc.aio.Channel],
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.codec = codec
        self.thread = thread
        self.memory = memory
        self.address = address
        self.free = deque(range(memory.slots))
        self._channel = channel
        self._start = start
        self._peers: dict[str, Peer] = {}
        self._missed: dict[str, tuple[float, str]] = {}
        self._meeting: set[str] = set()
        self._sending: dict[str, NixlSender] = {}
        self._parting: set[str] = set()

    def posted(self) -> int:
        """Transfers of which writes may be in flight."""
        return len(self._sending)

    def meet(self, agent: str, address: str) -> None:
        """Connect to a receiver some time soon, unless that was tried just now."""
        tried, _ = self._missed.get(agent, (-_MEET_AGAIN_S, ""))
        if agent in self._peers or agent in self._meeting or time.monotonic() - tried < _MEET_AGAIN_S:
            return
        self._meeting.add(agent)
        self._start(self._meet(agent, address))

    async def connect(self, agent: str, address: str) -> None:
        """Raises what keeps this worker from writing there."""
        fingerprint = self.codec.fingerprint.hex()
        request = pb.MeetRequest(agent=self.thread.name, backend=self.thread.backend, fingerprint=fingerprint)
        try:
            met = await nixl_pb2_grpc.NixlStub(self._channel(address)).Meet(request, timeout=_MEET_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        if met.agent != agent:
            raise Unavailable(f"{met.agent[:128]} is at its address now")
        region = Region(met.address, met.slots * met.slot_bytes + DOORMAT_BYTES, met.memory or HOST, met.device)
        peer = Peer(agent, region, met.slot_bytes)
        await self.thread.connect(peer, met.metadata)
        self._peers[agent] = peer
        self._missed.pop(agent, None)

    def part(self, agent: str) -> None:
        """Post nothing more to a receiver: its process is gone, or a write to it failed. It is connected to anew before
        it is used again."""
        if agent in self._peers and agent not in self._parting:
            self._parting.add(agent)
            self._part_if_idle(agent)

    @asynccontextmanager
    async def open(self, ticket: Ticket, agent: str) -> AsyncIterator[NixlSender]:
        """Entering raises `Unavailable` or `ResourceExhausted` saying why, when another path has to do."""
        if ticket.role != DECODE:
            raise Unavailable("NIXL carries pages to decode workers only")
        peer = self._peers.get(agent)
        if peer is None or agent in self._parting:
            _, why = self._missed.get(agent, (0.0, "NIXL is not connected to it yet"))
            self.meet(agent, ticket.endpoint)
            raise Unavailable(why)
        if any(each.late and each.agent == agent for each in self._sending.values()):
            raise Unavailable("writes of NIXL to it are late")
        if not self.free:
            raise ResourceExhausted("all memory that NIXL sends from is in use")
        async with Scope() as group:
            sender = NixlSender(ticket, self, peer, self._channel(ticket.endpoint))
            self._sending[ticket.transfer] = sender
            try:
                await sender.introduce(group)
                yield sender
            finally:
                await sender.abort()

    async def silence(self, transfer: str) -> None:
        """Returns once nothing of it is in flight, and nothing will be."""
        sender = self._sending.get(transfer)
        if sender is not None:
            await sender.silence()

    def silent(self, sender: NixlSender) -> None:
        """Nothing of it is in flight, and nothing will be."""
        if self._sending.pop(sender.transfer, None) is not None and sender.agent in self._parting:
            self._part_if_idle(sender.agent)

    def release(self, slot: int) -> None:
        """A slot here is free again."""
        self.free.append(slot)
        for sender in self._sending.values():
            sender.freed()

    def _part_if_idle(self, agent: str) -> None:
        if all(sender.agent != agent for sender in self._sending.values()):
            self._start(self._part(self._peers[agent]))

    async def _part(self, peer: Peer) -> None:
        with suppress(Unavailable):
            await self.thread.disconnect(peer)
        self._parting.discard(peer.agent)
        del self._peers[peer.agent]

    async def _meet(self, agent: str, address: str) -> None:
        try:
            await self.connect(agent, address)
        except BatonError as error:
            self._missed[agent] = time.monotonic(), error.message
            if len(self._missed) > _KEPT:
                del self._missed[next(iter(self._missed))]
        finally:
            self._meeting.discard(agent)
