"""How long a fence takes: from the moment that a receiver gives a transfer up until no write of it can arrive."""

import secrets
import time

from runtime.domain.messages import Ticket
from runtime.ids import BootId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.arrivals import OpenTransfers
from runtime.kv.transport.shm.receiving import WINDOW_BYTES, ShmReceiver
from runtime.kv.transport.shm.sending import ShmWriters
from runtime.kv.transport.timing.plan import frames, spec_of

_STAGING_BYTES = 64 << 20
_DEADLINE_MS = 10_000


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
            ticket = Ticket(
                transfer, 1, BootId("timing"), "grpc", "", spec.kv_fingerprint, spec.dtype, (), _DEADLINE_MS
            )
            async with writers.open(ticket, receiver.endpoint) as sender:
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
