"""A context that is held open between two calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.mesh.resident import Resident


class Guest:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.fault = asyncio.Event()

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[str]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._work())
            self.log.append("in")
            try:
                yield "here"
            finally:
                self.log.append("out")
                task.cancel()

    async def _work(self) -> None:
        await self.fault.wait()
        raise RuntimeError("fell over")


async def test_what_the_context_yields_is_given_and_stopping_leaves_it() -> None:
    guest = Guest()
    resident = Resident(guest.visit())
    assert await resident.start() == "here"
    assert guest.log == ["in"]
    await resident.stop()
    assert guest.log == ["in", "out"]


async def test_what_entering_raises_reaches_whoever_started_it() -> None:
    @asynccontextmanager
    async def refuse() -> AsyncIterator[None]:
        raise ValueError("no entry")
        yield

    with pytest.raises(ValueError, match="no entry"):
        await Resident(refuse()).start()


async def test_what_breaks_the_context_is_told_to_all_who_wait_for_its_end() -> None:
    guest = Guest()
    resident = Resident(guest.visit())
    await resident.start()
    resident.check()
    guest.fault.set()
    for wait in (resident.ended, resident.ended, resident.stop):
        with pytest.raises(ExceptionGroup) as broke:
            await wait()
        assert str(broke.value.exceptions[0]) == "fell over"
    with pytest.raises(ExceptionGroup):
        resident.check()
    assert guest.log == ["in", "out"]


async def test_who_gives_up_waiting_for_the_end_does_not_bring_it_about() -> None:
    resident = Resident(Guest().visit())
    await resident.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(resident.ended(), 0.01)
    await resident.stop()


async def test_a_context_that_is_aborted_is_cancelled_and_gone() -> None:
    guest = Guest()
    resident = Resident(guest.visit())
    await resident.start()
    await resident.abort()
    assert guest.log == ["in", "out"]
    with pytest.raises(asyncio.CancelledError):
        await resident.ended()
