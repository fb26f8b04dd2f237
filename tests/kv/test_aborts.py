"""Transfers from another process that are given up at random points, by either end or by a death: every page that
landed is the one that was sent, every slot is free again, and nothing that the system lends is kept."""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from runtime.domain.landing import Deliver, Landing, LandingEvent
from runtime.domain.staging import SlotState
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.transport.paths import Paths, Shm
from tests.kv.aborting import WIDE, Held, Job, frame_of, pages_of
from tests.kv.test_grpc_transport import side
from tests.scale import scaled

ABORTS = scaled(400, 10_000)
AT_ONCE = 8
SLOTS = 12
PATIENCE_S = 240
# Pipes and pollers of gRPC, which it keeps once it was used.
ITS_OWN = 8
OURS: set[str] = set()
ENDS = {"left", "cancelled", "StaleAttempt", "committed", "killed"}


class Sender:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ends: dict[str, asyncio.Future[str]] = {}
        self.last: dict[str, dict[str, int]] = {}

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            said = json.loads(line)
            if "transfer" in said:
                self.ends.pop(said["transfer"]).set_result(said["ended"])
            else:
                self.last = said
        for end in self.ends.values():
            end.set_result("killed")

    def begin(self, job: Job) -> "asyncio.Future[str]":
        end = self.ends[job.transfer] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        return end


@asynccontextmanager
async def sender_process() -> AsyncIterator[Sender]:
    """Ended by the end of its input, unless it was killed before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kv.aborting",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    sender = Sender(process)
    reading = asyncio.get_running_loop().create_task(sender.read())
    try:
        yield sender
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE_S):
            await reading
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class Receiver:
    paths: Paths
    memory: Shm
    endpoint: str
    ended: Counter[str]
    moved: Counter[str]

    async def transfer(self, sender: Sender, number: int) -> None:
        """One transfer, of which something becomes; then its fence, as a decode worker does whatever it was."""
        source = random.Random(number)
        name = f"{number}"
        pages = pages_of(name, source.randint(1, 12))
        landing = Landing(TransferId(name), 1, pages)

        def sink(event: LandingEvent) -> None:
            for command in landing.on(event):
                if isinstance(command, Deliver):
                    assert command.frame == frame_of(pages[command.frame.index]), "what lands is what was sent"
                    self.moved[self.path_of(event)] += 1

        self.paths.expect(landing.transfer, 1, pages, sink)
        how = source.choice(("leaves", "cancelled", "fenced", "fenced", "committed"))
        job = Job(
            name,
            self.endpoint,
            self.memory.receiver.endpoint if source.random() < 0.5 else "",
            len(pages),
            leaves_after=source.randrange(len(pages)) if how == "leaves" else -1,
            cancelled_after_s=source.uniform(0, 0.01) if how == "cancelled" else -1.0,
        )
        end = sender.begin(job)
        if how == "fenced":
            await asyncio.sleep(source.uniform(0, 0.01))
            landing.abort()
            await self.paths.fence(landing.transfer)
        async with asyncio.timeout(PATIENCE_S):
            self.ended[await end] += 1
        landing.abort()
        await self.paths.fence(landing.transfer)

    @staticmethod
    def path_of(event: LandingEvent) -> str:
        return str(getattr(event, "path", ""))

    def aborted(self) -> int:
        return self.ended.total() - self.ended["committed"]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    async with side(WIDE) as grpc:
        memory = Shm(grpc.transport, SLOTS * FrameCodec(WIDE).max_bytes)
        OURS.add(f"@{memory.receiver.endpoint}")
        try:
            yield Receiver(Paths(grpc.transport, memory), memory, grpc.transport._endpoint, Counter(), Counter())
        finally:
            memory.close()


@pytest.mark.timeout(1800)
async def test_transfers_that_are_given_up_at_random_points_leave_nothing_behind() -> None:
    named, begun = names(), Held.now()
    async with receiving() as receiver:
        idle = Held.now()
        batch = number = 0
        while receiver.aborted() < ABORTS:
            batch += 1
            async with sender_process() as sender:
                for _ in range(ABORTS // 4 // AT_ONCE):
                    async with asyncio.TaskGroup() as group:
                        for _ in range(AT_ONCE):
                            number += 1
                            group.create_task(receiver.transfer(sender, number))
                if batch % 2:
                    number = await killed_midway(receiver, sender, number)
            if batch % 2 == 0:
                before, after = (Held(**sender.last[when]) for when in ("before", "after"))
                assert after.mapped == before.mapped == 1, "its own memory, and of the receiver's none"
                assert after.files <= before.files + ITS_OWN
        assert ENDS <= receiver.ended.keys() <= ENDS | {"Unavailable"}, "a push whose call has ended may say just that"
        assert min(receiver.moved["shm"], receiver.moved["grpc"]) > ABORTS / 10
        assert receiver.paths.receiving() == 0
        counts = receiver.memory.receiver.staging.counts()
        assert counts == {SlotState.FREE: SLOTS, SlotState.GRANTED: 0, SlotState.QUARANTINED: 0}
        receiver.paths.check()
        await settled(idle)
    await settled(replace(begun, files=begun.files + ITS_OWN))
    assert names() == named


async def killed_midway(receiver: Receiver, sender: Sender, number: int) -> int:
    async with asyncio.TaskGroup() as group:
        for more in range(1, AT_ONCE + 1):
            group.create_task(receiver.transfer(sender, number + more))
        await asyncio.sleep(0.005)
        sender.process.kill()
    return number + AT_ONCE


def names() -> set[str]:
    """Of shared memory and sockets, those that a receiver could have left."""
    memory = (name for name in os.listdir("/dev/shm") if "baton" in name)
    sockets = (line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines())
    return {*memory, *(f"{os.getpid()} {name}" for name in sockets if name in OURS)}


async def settled(wanted: Held) -> None:
    """This process has open what it had, once the sockets of those that are gone are closed."""
    async with asyncio.timeout(PATIENCE_S):
        while Held.now().files > wanted.files:  # noqa: ASYNC110 - grpc tells nobody
            await asyncio.sleep(0.05)
    assert Held.now().mapped == wanted.mapped
