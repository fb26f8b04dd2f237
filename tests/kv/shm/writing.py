"""A writer in a process of its own: `python -m tests.kv.shm.writing JSON`. Says on standard output how far it is.

It stops itself (SIGSTOP) in the middle of writing the frame `stops_at`, as a process does that loses its processor
there; once continued it writes the rest.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass

from runtime.domain.messages import Ticket
from runtime.domain.steps import Frame
from runtime.errors import BatonError
from runtime.ids import BootId, PageId, TransferId
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.shm.sending import ShmWriters
from tests.kv.test_frames import SPEC

LATE = b"\xee"


@dataclass(frozen=True, slots=True)
class Job:
    endpoint: str
    transfer: str
    frames: int
    stops_at: int = -1


class StoppingCodec(FrameCodec):
    def __init__(self, stops_at: int) -> None:
        super().__init__(SPEC)
        self._stops_at = stops_at

    def place(self, frame: Frame, target: memoryview) -> int:
        if frame.index != self._stops_at:
            return super().place(frame, target)
        half = HEADER_BYTES + len(frame.payload) // 2
        target[HEADER_BYTES:half] = frame.payload[: half - HEADER_BYTES]
        os.kill(os.getpid(), signal.SIGSTOP)
        target[half : HEADER_BYTES + len(frame.payload)] = frame.payload[half - HEADER_BYTES :]
        return super().place(frame, target)


def ticket(transfer: str) -> Ticket:
    return Ticket(
        TransferId(transfer), 1, BootId("boot"), "grpc", "unused:1", SPEC.kv_fingerprint, SPEC.dtype, (), 20_000
    )


def frame(index: int, content: bytes = LATE) -> Frame:
    return Frame(PageId(index.to_bytes(16)), index, SPEC.page_tokens, content * SPEC.page_bytes)


async def write(job: Job) -> None:
    writers = ShmWriters(StoppingCodec(job.stops_at))
    try:
        async with writers.open(ticket(job.transfer), job.endpoint) as sender:
            for index in range(job.frames):
                await sender.send(frame(index))
            await sender.commit()
    except BatonError as error:
        sys.stdout.write(f"{type(error).__name__}\n")
    else:
        sys.stdout.write("committed\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    writers.close()


if __name__ == "__main__":
    asyncio.run(write(Job(**json.loads(sys.argv[1]))))
