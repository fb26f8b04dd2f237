"""Writers in processes of their own that are stopped and killed in the middle of a write."""

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from runtime.domain.landing import FrameArrived, SenderAborted
from runtime.kv.transport.shm import words as w
from tests.kv.shm.conftest import SLOTS, Side, kinds, writer_process
from tests.kv.shm.writing import LATE, Job

if TYPE_CHECKING:
    import subprocess

_PATIENCE_S = 20


async def test_frames_of_another_process_land(side: Side) -> None:
    landing = side.expect("one")
    with writer_process(Job(side.receiver.endpoint, "one", frames=9)) as process:
        assert await said(process) == "committed"
    assert kinds(landing.events) == ["FrameArrived"] * 9 + ["CommitArrived"]


async def test_a_writer_stopped_within_a_write_reaches_no_slot_of_another_when_it_wakes(side: Side) -> None:
    """It is stopped, the transfer is given up, the other slots are handed on, and then it goes on writing."""
    landing = side.expect("one")
    with writer_process(Job(side.receiver.endpoint, "one", frames=2, stops_at=1)) as process:
        await landing.wait_for(FrameArrived)
        await stopped(process)
        fencing = asyncio.get_running_loop().create_task(side.fence("one"))
        await asyncio.sleep(0)
        assert side.counts() == (2, 0, 2), "what the sleeper may write into is nobody's"

        side.expect("two")
        raw = await side.raw()
        granted = await raw.ask(w.Open(1, 1, "two"))
        assert isinstance(granted, w.Granted)
        assert len(granted.slots) == 2
        for slot in granted.slots:
            side.receiver.arena.slot(slot)[:] = bytes(side.receiver.arena.slot_bytes)
        side.expect("three")
        assert isinstance(await (await side.raw()).ask(w.Open(1, 1, "three")), w.NoRoom)
        assert not fencing.done()

        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(_PATIENCE_S):
            await fencing
        assert await said(process) == "StaleAttempt"
        late = [LATE in bytes(side.receiver.arena.slot(slot)) for slot in range(SLOTS)]
        assert [late[slot] for slot in granted.slots] == [False, False]
        assert sum(late) == 2, "it did write: into its own two slots"
    assert kinds(landing.events) == ["FrameArrived"]
    assert side.counts() == (2, 2, 0)


async def test_a_writer_killed_while_it_is_stopped_frees_its_slots_at_once(side: Side) -> None:
    landing = side.expect("one")
    with writer_process(Job(side.receiver.endpoint, "one", frames=2, stops_at=1)) as process:
        await landing.wait_for(FrameArrived)
        await stopped(process)
        fencing = asyncio.get_running_loop().create_task(side.fence("one"))
        await asyncio.sleep(0.05)
        assert not fencing.done()
        process.kill()
        async with asyncio.timeout(_PATIENCE_S):
            await fencing
    assert side.counts() == (SLOTS, 0, 0)


async def test_a_writer_killed_within_a_transfer_is_noticed_and_leaves_nothing(side: Side) -> None:
    landing = side.expect("one")
    with writer_process(Job(side.receiver.endpoint, "one", frames=2, stops_at=1)) as process:
        await landing.wait_for(FrameArrived)
        await stopped(process)
        process.kill()
        await landing.wait_for(SenderAborted)
    assert side.counts() == (SLOTS, 0, 0)
    assert os.fstat(side.receiver.arena.descriptor).st_nlink == 0, "it has no name that could be left"


async def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_PATIENCE_S):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


async def stopped(process: "subprocess.Popen[str]") -> None:
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
