"""A writer in a process of its own: `python -m tests.kv.nixl.writing JSON`. Says on standard output how far it is.

It stops itself (SIGSTOP) when it has just posted the write number `stops_at`, of which a part is still to be written;
once continued it goes on. With `cuts` its call has ended before that, so that its receiver hears nothing of it.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import BatonError
from runtime.kv.transport.nixl import ends
from runtime.kv.transport.nixl.thread import AgentThread, Write
from tests.kv.nixl.sides import worker

_CUT_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    agent: str
    receiver: str
    address: str
    transfer: str
    frames: int
    page_bytes: int
    stops_at: int = -1
    cuts: bool = False


class StoppingThread(AgentThread):
    stops_at = -1
    cuts = False
    posts = 0
    hang_up: Callable[[], object]

    def _post(self, write: Write) -> None:
        stops = self.posts == self.stops_at
        StoppingThread.posts += 1
        if stops and self.cuts:
            self._loop.call_soon_threadsafe(self.hang_up)
            time.sleep(_CUT_S)
        super()._post(write)
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)


async def write(job: Job) -> None:
    StoppingThread.stops_at, StoppingThread.cuts = job.stops_at, job.cuts
    setattr(ends, "AgentThread", StoppingThread)  # noqa: B010 - a constant of another module, for this process
    async with worker(job.agent, job.page_bytes) as side:
        await side.meet(job.receiver, job.address)
        try:
            async with side.nixl.writers.open(side.ticket(job.transfer, job.address), job.receiver) as sender:
                StoppingThread.hang_up = sender._call.cancel
                for index in range(job.frames):
                    await sender.send(side.frame(index))
                await sender.commit()
        except BatonError as error:
            say(type(error).__name__)
        else:
            say("committed")
        await asyncio.to_thread(sys.stdin.read)


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ["UCX_TLS"] = "tcp"
    # What is posted leaves in small portions, so that a part of it is still here when this process stops.
    os.environ["UCX_TCP_SNDBUF"] = "64K"
    asyncio.run(write(Job(**json.loads(sys.argv[1]))))
