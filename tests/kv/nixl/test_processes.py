"""Writers by NIXL in processes of their own that are stopped, cut off and killed while a write is in flight."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict

import grpc
import pytest

from runtime.domain.landing import FrameArrived, SenderAborted
from runtime.kv.frames import HEADER_BYTES
from tests.kv.nixl.sides import LARGE_BYTES, LATE, PAGE_BYTES, SLOTS, Side, worker
from tests.kv.nixl.test_nixl import Raw
from tests.kv.nixl.writing import Job

_PATIENCE_S = 30


@contextmanager
def writer_process(job: Job) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "tests.kv.nixl.writing", json.dumps(asdict(job))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def job(receiver: Side, frames: int, page_bytes: int = LARGE_BYTES, stops_at: int = -1, *, cuts: bool = False) -> Job:
    return Job("p:1", "d:1", receiver.address, "one", frames, page_bytes, stops_at, cuts)


async def test_frames_of_another_process_land_byte_for_byte() -> None:
    async with worker("d:1") as receiver:
        landing = receiver.expect("one")
        with writer_process(job(receiver, 9, PAGE_BYTES)) as process:
            assert await said(process) == "committed"
        frames = {
            event.frame.index: event.frame for event in landing.of(FrameArrived) if isinstance(event, FrameArrived)
        }
        assert frames == {index: receiver.frame(index) for index in range(9)}


async def test_a_writer_stopped_within_a_write_reaches_no_slot_of_another_when_it_wakes() -> None:
    """It is stopped, the transfer is given up, the other slots are handed on, and then what was posted goes on."""
    async with worker("d:1", LARGE_BYTES) as receiver:
        landing = receiver.expect("one")
        with writer_process(job(receiver, 2, stops_at=1)) as process:
            await stopped(process)
            fencing = asyncio.get_running_loop().create_task(receiver.fence("one"))
            await asyncio.sleep(0)
            assert receiver.counts() == (2, 0, 2), "what the sleeper may write into is nobody's"
            async with handed_on(receiver) as others:
                own = [slot for slot in range(SLOTS) if slot not in others]
                assert written(receiver, own) < 2 * LARGE_BYTES
                assert not fencing.done()

                process.send_signal(signal.SIGCONT)
                async with asyncio.timeout(_PATIENCE_S):
                    await fencing
                assert await said(process) == "StaleAttempt"
                assert written(receiver, own) == 2 * LARGE_BYTES, "all that was posted did land, after the abort"
                assert written(receiver, others) == 0
        assert landing.of(FrameArrived) == []


async def test_a_writer_that_was_cut_off_and_is_stopped_keeps_its_slots_until_it_wakes() -> None:
    """Its call is over, which says nothing: the slots are nobody's before it was asked."""
    async with worker("d:1", LARGE_BYTES) as receiver:
        landing = receiver.expect("one")
        with writer_process(job(receiver, 2, stops_at=1, cuts=True)) as process:
            await stopped(process)
            await landing.wait_for(SenderAborted)
            async with handed_on(receiver) as others:
                own = [slot for slot in range(SLOTS) if slot not in others]
                await asyncio.sleep(0.5)
                assert receiver.counts() == (0, 2, 2)
                assert written(receiver, own) < 2 * LARGE_BYTES

                process.send_signal(signal.SIGCONT)
                async with asyncio.timeout(_PATIENCE_S):
                    await receiver.fence("one")
                assert written(receiver, own) == 2 * LARGE_BYTES, "all that was posted did land, after the abort"
                assert written(receiver, others) == 0
                assert receiver.counts() == (2, 2, 0)


async def test_a_writer_killed_while_it_is_stopped_frees_its_slots_after_the_hold() -> None:
    async with worker("d:1", LARGE_BYTES, hold_s=0.3) as receiver:
        receiver.expect("one")
        with writer_process(job(receiver, 2, stops_at=1)) as process:
            await stopped(process)
            fencing = asyncio.get_running_loop().create_task(receiver.fence("one"))
            await asyncio.sleep(0.05)
            began = asyncio.get_running_loop().time()
            process.kill()
            async with asyncio.timeout(_PATIENCE_S):
                await fencing
            assert asyncio.get_running_loop().time() - began >= 0.3
            assert receiver.counts() == (SLOTS, 0, 0)


@asynccontextmanager
async def handed_on(receiver: Side) -> AsyncIterator[list[int]]:
    """The slots that another writer gets; a third gets none."""
    receiver.expect("two")
    receiver.expect("three")
    raw, third = Raw(receiver), Raw(receiver, "raw:2")
    others = await raw.open("two")
    assert len(others) == 2
    for slot in others:
        receiver.nixl.receiver.memory.slot(slot)[:] = bytes(receiver.nixl.receiver.memory.slot_bytes)
    with pytest.raises(grpc.aio.AioRpcError, match="no staging slot is free"):
        await third.open("three")
    yield others
    await raw.close()
    await third.close()


def written(receiver: Side, slots: list[int]) -> int:
    """Bytes of the late writer's payload in slots."""
    return sum(bytes(receiver.nixl.receiver.memory.slot(slot))[HEADER_BYTES:].count(LATE) for slot in slots)


async def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_PATIENCE_S):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


async def stopped(process: "subprocess.Popen[str]") -> None:
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
