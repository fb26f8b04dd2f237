"""The sending ends that are timed: each moves so many pages to a receiver and returns when it has them."""

import asyncio
import mmap
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import grpc

from runtime.domain.messages import Ticket, TicketPage
from runtime.ids import BootId, PageId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.grpc import GrpcTransport
from runtime.kv.transport.nixl.ends import NixlPlan, running_nixl
from runtime.kv.transport.nixl.sending import NixlWriters
from runtime.kv.transport.sending import MESSAGE_BYTES
from runtime.kv.transport.shm.sending import ShmWriters
from runtime.kv.transport.timing.bare_nixl import BACKEND, BareSource
from runtime.kv.transport.timing.plan import NIXL_AGENT, RAW_METHOD, Listening, Unverified, frames, payloads, spec_of
from runtime.kv.transport.timing.receiver import transfer_name
from runtime.ports import Sender

_COPY_BYTES = 64 << 20
_STAGING_BYTES = 64 << 20
_LANES = 2
_DEADLINE_MS = 120_000

Move = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def sending(page_bytes: int, there: Listening) -> AsyncIterator["Senders"]:
    """Senders to a receiver, connected."""
    async with AsyncExitStack() as stack:
        nixl = None
        if there.nixl is not None:
            control = _channel(there.grpc)
            stack.push_async_callback(control.close, None)
            codec = FrameCodec(spec_of(page_bytes))
            plan = NixlPlan("timing:sender", BACKEND, _STAGING_BYTES)
            running = running_nixl(
                codec, OpenTransfers(codec), "unserved:1", lambda _: control, lambda _: control, plan
            )
            nixl = (await stack.enter_async_context(running)).writers
            await nixl.connect(NIXL_AGENT, there.grpc)
        senders = Senders(page_bytes, there, nixl)
        stack.push_async_callback(senders.close)
        yield senders


class Senders:
    """Of one page size, to one receiver. `moves` are by name; each takes how many pages to move. By NIXL only with
    writers that are connected to it."""

    def __init__(self, page_bytes: int, there: Listening, nixl: NixlWriters | None) -> None:
        self.moves: dict[str, Move] = {
            "memcpy": self._memcpy,
            "tcp": self._tcp,
            "grpc_raw": self._grpc_raw,
            "grpc": self._grpc,
            "shm_unverified": self._shm_unverified,
            "shm": self._shm,
        }
        if nixl is not None and there.nixl is not None:
            self._bare = BareSource(page_bytes, there.nixl)
            self.moves |= {"nixl_raw": self._nixl_raw, "nixl": self._nixl}
        self._nixl_writers = nixl
        self._there = there
        self._spec = spec_of(page_bytes)
        self._page_bytes = page_bytes
        self._frames = frames(self._spec)
        self._payloads = payloads(page_bytes)
        self._numbers = {name: count() for name in self.moves}
        self._memory = memoryview(mmap.mmap(-1, _COPY_BYTES))
        self._channels = {lane: _channel(there.grpc) for lane in range(_LANES)}
        self._transport = GrpcTransport(self._spec, "", lambda *place: self._channels[place[-1]])
        self._writers = {
            "shm": ShmWriters(FrameCodec(self._spec)),
            "shm_unverified": ShmWriters(Unverified(self._spec)),
        }
        self._socket = socket.create_connection(("127.0.0.1", there.tcp))

    async def close(self) -> None:
        self._socket.close()
        if "nixl" in self.moves:
            self._bare.close()
        for writers in self._writers.values():
            writers.close()
        for channel in self._channels.values():
            await channel.close(None)

    async def _memcpy(self, pages: int) -> None:
        size, places = self._page_bytes, _COPY_BYTES // self._page_bytes
        for number in range(pages):
            start = number % places * size
            self._memory[start : start + size] = self._payloads[number % len(self._payloads)]

    async def _tcp(self, pages: int) -> None:
        await asyncio.to_thread(self._tcp_blocking, pages)

    def _tcp_blocking(self, pages: int) -> None:
        self._socket.sendall((pages * self._page_bytes).to_bytes(8, "little"))
        for number in range(pages):
            self._socket.sendall(self._payloads[number % len(self._payloads)])
        self._socket.recv(1)

    async def _grpc_raw(self, pages: int) -> None:
        """The same bytes in messages of the same size over as many connections, and nothing else."""
        size = max(MESSAGE_BYTES, self._page_bytes)
        messages = pages * self._page_bytes // size
        message = bytes(size)

        async def lane(channel: grpc.aio.Channel, messages: int) -> None:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(RAW_METHOD, None, None)(None)
            for _ in range(messages):
                await call.write(message)
            await call.done_writing()
            await call.read()

        async with asyncio.TaskGroup() as group:
            for channel in self._channels.values():
                group.create_task(lane(channel, messages // _LANES))

    async def _grpc(self, pages: int) -> None:
        ticket = self._ticket("grpc", pages)
        async with self._transport.open(ticket) as sender:
            await self._push(sender, pages)

    async def _shm(self, pages: int) -> None:
        async with self._writers["shm"].open(self._ticket("shm", pages), self._there.shm) as sender:
            await self._push(sender, pages)

    async def _shm_unverified(self, pages: int) -> None:
        name = "shm_unverified"
        async with self._writers[name].open(self._ticket(name, pages), self._there.shm_unverified) as sender:
            await self._push(sender, pages)

    async def _nixl_raw(self, pages: int) -> None:
        await asyncio.to_thread(self._bare.move, pages)

    async def _nixl(self, pages: int) -> None:
        assert self._nixl_writers is not None
        async with self._nixl_writers.open(self._ticket("nixl", pages), NIXL_AGENT) as sender:
            await self._push(sender, pages)

    async def _push(self, sender: Sender, pages: int) -> None:
        for number in range(pages):
            await sender.send(self._frames[number % len(self._frames)])
        await sender.commit()

    def _ticket(self, path: str, pages: int) -> Ticket:
        spec = self._spec
        name = transfer_name(path, next(self._numbers[path]))
        wanted = tuple(TicketPage(index, PageId(bytes(16)), spec.page_tokens) for index in range(pages))
        return Ticket(
            TransferId(name),
            1,
            BootId("timing"),
            "grpc",
            self._there.grpc,
            spec.kv_fingerprint,
            spec.dtype,
            wanted,
            _DEADLINE_MS,
        )


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        address, options=(("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
    )
