"""A worker's life in the mesh, with controllers of every kind."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from runtime.clock import LoopClock
from runtime.domain.messages import View, Worker
from runtime.domain.retention import Retention
from runtime.errors import BatonError, DeadlineExceeded, Incompatible, Unavailable
from runtime.ids import BootId, SessionId, WorkerId
from runtime.roles.belonging import Belonging, Drained
from tests.roles.one_decode_worker import decode_worker, start, until
from tests.roles.virtual import in_virtual_time, now

HERE = Worker(WorkerId("a"), BootId("boot-1"), "decode", "a:1", "model", "kv", "serving", 96, 4, "cpu x1")
LEASE_S = 4.0


class Told:
    """A directory that answers as it is told, one time after the other, and then always as the last time."""

    def __init__(self, *answers: float | BatonError | None) -> None:
        self.answers = [*answers]
        self.registered: list[Worker] = []
        self.left = False

    async def register(self, worker: Worker) -> float | None:
        self.registered.append(worker)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BatonError):
            raise answer
        return answer

    async def leave(self, worker: WorkerId, boot: BootId) -> None:
        self.left = True

    async def views(self) -> AsyncIterator[View]:
        yield View(1, 1)


class Idle:
    def running(self) -> int:
        return 0


def belonging(directory: Told) -> Belonging:
    return Belonging(directory, lambda: HERE, Idle(), LoopClock(), LEASE_S)  # type: ignore[arg-type]


@in_virtual_time
async def test_a_controller_that_is_gone_or_hangs_ends_no_worker() -> None:
    directory = Told(None, Unavailable("gone"), DeadlineExceeded("it did not answer in time"), None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10 * LEASE_S):
            await belonging(directory).renew()
    assert len(directory.registered) > 30


@in_virtual_time
async def test_who_is_refused_for_a_lease_ends_and_not_before() -> None:
    directory = Told(None, Incompatible("a stranger was first"), None, Incompatible("it serves something else"))
    with pytest.raises(Incompatible, match="something else"):
        await belonging(directory).renew()
    assert now() == pytest.approx(3 + LEASE_S)


@in_virtual_time
async def test_who_is_asked_to_leave_says_so_and_leaves() -> None:
    directory = Told(None, 5.0)
    with pytest.raises(Drained):
        await belonging(directory).renew()
    assert (directory.left, now()) == (True, 2.0)


@in_virtual_time
async def test_a_decode_worker_that_is_asked_to_leave_keeps_nothing_for_sessions_that_are_away() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        asked = replace(start(), session=SessionId("sess"), retention=Retention(20_000, 20_000))
        gateway.link.command(asked)
        await until(lambda: len(it.engine.core.grants) > 0)
        with pytest.raises(Drained):
            await Belonging(Told(None, 60.0), lambda: HERE, it.role, LoopClock(), LEASE_S).renew()
        await until(lambda: len(it.engine.core.grants) == 0)
        assert now() < 15, "not when its time is over"
