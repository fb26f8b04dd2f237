"""A worker that sends, in a process of its own: `python -m tests.kv.aborting`. Reads a job a line, and says how each
ended; ends when its standard input does, and says then what it still holds."""

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc

from runtime.domain.messages import Offer, Ticket, TicketPage
from runtime.domain.steps import Frame
from runtime.errors import BatonError
from runtime.ids import BootId, PageId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.grpc import GrpcTransport
from runtime.kv.transport.paths import Paths, Shm
from tests.kv.test_frames import SPEC

# 24 KiB a page: large enough that a transfer is to be met half-way.
WIDE = replace(SPEC, page_tokens=128, kv_fingerprint="ab" * 16)
MAPPED = "baton-kv"


@dataclass(frozen=True, slots=True)
class Job:
    """Push `frames` pages and commit. The sender leaves after `leaves_after` frames, or is cancelled after
    `cancelled_after_s`; negative, neither. Without `memory` it goes by gRPC."""

    transfer: str
    endpoint: str
    memory: str
    frames: int
    leaves_after: int = -1
    cancelled_after_s: float = -1.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has open."""

    files: int
    mapped: int

    @staticmethod
    def now() -> "Held":
        maps = Path("/proc/self/maps").read_text().splitlines()
        return Held(len(os.listdir("/proc/self/fd")), sum(MAPPED in line for line in maps))


class Leaves(Exception):
    """The sender has no more to give."""


def pages_of(transfer: str, count: int) -> tuple[TicketPage, ...]:
    return tuple(
        TicketPage(index, PageId(f"{transfer}/{index}".encode().rjust(16, b"-")), WIDE.page_tokens)
        for index in range(count)
    )


def frame_of(page: TicketPage) -> Frame:
    return Frame(page.id, page.index, WIDE.page_tokens, page.id * (WIDE.page_bytes // 16))


async def push(paths: Paths, job: Job) -> str:
    pages = pages_of(job.transfer, job.frames)
    offers = (Offer("shm", job.memory),) if job.memory else ()
    ticket = Ticket(
        TransferId(job.transfer), 1, BootId("boot"), "grpc", job.endpoint, WIDE.kv_fingerprint, WIDE.dtype, pages,
        20_000, offers,
    )  # fmt: skip
    try:
        async with asyncio.timeout(job.cancelled_after_s if job.cancelled_after_s >= 0 else None):
            async with paths.open(ticket) as sender:
                for index, page in enumerate(pages):
                    if index == job.leaves_after:
                        raise Leaves
                    await sender.send(frame_of(page))
                    await asyncio.sleep(0)
                await sender.commit()
    except TimeoutError:
        return "cancelled"
    except Leaves:
        return "left"
    except BatonError as error:
        return type(error).__name__
    return "committed"


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main() -> None:
    channels: dict[tuple[str, int], grpc.aio.Channel] = {}

    def channel(address: str, _role: str, lane: int) -> grpc.aio.Channel:
        if (address, lane) not in channels:
            channels[address, lane] = grpc.aio.insecure_channel(address)
        return channels[address, lane]

    over_grpc = GrpcTransport(WIDE, "unused:1", channel)
    memory = Shm(over_grpc, 4 * FrameCodec(WIDE).max_bytes)
    paths = Paths(over_grpc, memory)

    async def run(job: Job) -> None:
        say(transfer=job.transfer, ended=await push(paths, job))

    before = Held.now()
    jobs = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(jobs), sys.stdin)
    async with asyncio.TaskGroup() as group:
        while line := await jobs.readline():
            group.create_task(run(Job(**json.loads(line))))
    memory.writers.close()
    for each in channels.values():
        await each.close(None)
    say(before=asdict(before), after=asdict(Held.now()))
    memory.close()


if __name__ == "__main__":
    asyncio.run(main())
