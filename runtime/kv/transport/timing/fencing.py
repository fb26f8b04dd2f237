"""How long a fence takes: from the moment that a receiver gives a transfer up until no write of it can arrive."""

import secrets
import time
from contextlib import AsyncExitStack

import grpc

from runtime.domain.messages import Ticket
from runtime.domain.spec import ModelSpec
from runtime.ids import BootId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.nixl.ends import NixlPlan, running_nixl
from runtime.kv.transport.nixl.receiving import WINDOW_BYTES as NIXL_WINDOW_BYTES
from runtime.kv.transport.shm.receiving import WINDOW_BYTES, ShmReceiver
from runtime.kv.transport.shm.sending import ShmWriters
from runtime.kv.transport.timing.bare_nixl import BACKEND
from runtime.kv.transport.timing.plan import frames, spec_of

_STAGING_BYTES = 64 << 20
_DEADLINE_MS = 10_000
_AGENT = "timing:fenced"


async def fence_s(page_bytes: int, times: int) -> list[float]:
    """Seconds of `times` fences of shared memory, each while a whole window of frames is on its way."""
    spec = spec_of(page_bytes)
    codec, pushed = FrameCodec(spec), frames(spec)
    transfers = OpenTransfers(codec)
    window = WINDOW_BYTES // page_bytes
    receiver = ShmReceiver(codec, transfers, f"baton-timing-{secrets.token_hex(8)}", _STAGING_BYTES)
    writers = ShmWriters(codec)
    took: list[float] = []
    try:
        for number in range(times):
            transfer = TransferId(f"fenced-{number}")
            transfers.open(transfer, 1, window, lambda _: None)
            async with writers.open(_ticket(spec, transfer, ""), receiver.endpoint) as sender:
                for frame in pushed[: window - 1]:
                    await sender.send(frame)
                transfers.close(transfer)
                began = time.perf_counter()
                await receiver.fence(transfer)
                took.append(time.perf_counter() - began)
    finally:
        writers.close()
        receiver.close()
    return took


async def nixl_fence_s(page_bytes: int, times: int) -> list[float]:
    """As `fence_s`, of NIXL: the writer polls what it has posted to its end, and says so by gRPC."""
    spec = spec_of(page_bytes)
    codec, pushed = FrameCodec(spec), frames(spec)
    transfers = OpenTransfers(codec)
    window = NIXL_WINDOW_BYTES // codec.max_bytes
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    took: list[float] = []
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        ends = [
            await stack.enter_async_context(
                running_nixl(codec, transfers, address, lambda _: channel, lambda _: channel, NixlPlan(*plan))
            )
            for plan in ((_AGENT, BACKEND, _STAGING_BYTES), ("timing:fencing", BACKEND, _STAGING_BYTES))
        ]
        receiver, writers = ends[0].receiver, ends[1].writers
        ends[0].service.add_to(server)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await writers.connect(_AGENT, address)
        for number in range(times):
            transfer = TransferId(f"fenced-{number}")
            transfers.open(transfer, 1, window, lambda _: None)
            async with writers.open(_ticket(spec, transfer, address), _AGENT) as sender:
                for frame in pushed[:window]:
                    await sender.send(frame)
                transfers.close(transfer)
                began = time.perf_counter()
                await receiver.fence(transfer)
                took.append(time.perf_counter() - began)
    return took


def _ticket(spec: ModelSpec, transfer: TransferId, endpoint: str) -> Ticket:
    fingerprint, dtype = spec.kv_fingerprint, spec.dtype
    return Ticket(transfer, 1, BootId("timing"), "grpc", endpoint, fingerprint, dtype, (), _DEADLINE_MS)
