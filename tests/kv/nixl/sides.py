"""Workers as far as NIXL goes: a server, the transport behind it, and landings that remember."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from runtime.domain.messages import Ticket
from runtime.domain.staging import SlotState
from runtime.domain.steps import Frame
from runtime.ids import BootId, PageId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.grpc import GrpcTransport, message_bytes
from runtime.kv.transport.nixl.ends import Nixl, NixlPlan, running_nixl
from runtime.kv.transport.timing.plan import spec_of
from runtime.services.server import GrpcServer
from tests.kv.test_grpc_transport import Landing

SLOTS = 4
PAGE_BYTES = 64 << 10
# More of two such pages than the buffers of a connection hold, so that a part of them is still to be written.
LARGE_BYTES = 12 << 20
LATE = b"\xee"


class Side:
    """One worker. `meet` connects to another, `expect` opens a transfer here."""

    def __init__(self, nixl: Nixl, transport: GrpcTransport, address: str, page_bytes: int) -> None:
        self.nixl = nixl
        self.transport = transport
        self.address = address
        self.spec = spec_of(page_bytes)

    async def meet(self, agent: str, address: str) -> None:
        await self.nixl.writers.connect(agent, address)

    def expect(self, transfer: str, pages: int = 2) -> Landing:
        landing = Landing()
        self.transport.transfers.open(TransferId(transfer), 1, pages, landing)
        return landing

    async def fence(self, transfer: str) -> None:
        self.transport.transfers.close(transfer)
        await self.nixl.fence(TransferId(transfer))

    def counts(self) -> tuple[int, int, int]:
        """Free, granted and quarantined slots."""
        found = self.nixl.receiver.staging.counts()
        return found[SlotState.FREE], found[SlotState.GRANTED], found[SlotState.QUARANTINED]

    def ticket(self, transfer: str, endpoint: str, remaining_ms: int = 20_000) -> Ticket:
        fingerprint, dtype = self.spec.kv_fingerprint, self.spec.dtype
        name = TransferId(transfer)
        return Ticket(name, 1, BootId("boot"), "grpc", endpoint, fingerprint, dtype, (), remaining_ms)

    def frame(self, index: int, content: bytes = LATE) -> Frame:
        return Frame(PageId(index.to_bytes(16)), index, self.spec.page_tokens, content * self.spec.page_bytes)


@asynccontextmanager
async def worker(agent: str, page_bytes: int = PAGE_BYTES, port: int = 0, hold_s: float = 0.05) -> AsyncIterator[Side]:
    spec = spec_of(page_bytes)
    async with AsyncExitStack() as stack:
        channels: dict[str, grpc.aio.Channel] = {}

        def channel(address: str, *_role_and_lane: object) -> grpc.aio.Channel:
            if address not in channels:
                channels[address] = grpc.aio.insecure_channel(address)
                stack.push_async_callback(channels[address].close, None)
            return channels[address]

        server = GrpcServer("127.0.0.1", port, message_bytes=message_bytes(spec))
        address = f"127.0.0.1:{server.port}"
        transport = GrpcTransport(spec, address, channel)
        plan = NixlPlan(agent, "UCX", SLOTS * FrameCodec(spec).max_bytes, hold_s)
        running = running_nixl(transport.codec, transport.transfers, address, channel, channel, plan)
        nixl = await stack.enter_async_context(running)
        server.add(nixl.service)
        await stack.enter_async_context(server)
        yield Side(nixl, transport, address, page_bytes)
        nixl.check()
