"""Workers that die are started again, those that cannot start are not, and all are stopped at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runtime.clock import LoopClock
from runtime.domain.restarts import RestartPolicy
from runtime.errors import StartError
from runtime.ids import WorkerId
from runtime.mesh.keeping import Keeper, Kept, State

ONE = WorkerId("decode-0")
TWO = WorkerId("decode-1")
POLICY = RestartPolicy(first_s=0.001, most_s=0.001, deaths=2)


class Host:
    def __init__(self, fault: str | None) -> None:
        self.fault = fault
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.stopped = False

    async def start(self) -> None:
        if self.fault is not None:
            raise StartError(self.fault)

    async def ended(self) -> str:
        return await self.died

    async def stop(self) -> None:
        self.stopped = True


class Launchpad:
    """Launches hosts; the n-th host of a worker has the n-th fault that was laid out for it."""

    def __init__(self, **faults: list[str | None]) -> None:
        self.hosts: dict[WorkerId, list[Host]] = {}
        self._faults = {WorkerId(worker.replace("_", "-")): list(each) for worker, each in faults.items()}

    async def launch(self, worker: WorkerId) -> Host:
        faults = self._faults.get(worker, [])
        host = Host(faults.pop(0) if faults else None)
        self.hosts.setdefault(worker, []).append(host)
        return host


@asynccontextmanager
async def kept(launchpad: Launchpad, *workers: WorkerId) -> AsyncIterator[Keeper]:
    keeper = Keeper(workers, launchpad, POLICY, LoopClock())
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(keeper.run())
        yield keeper
        task.cancel()


async def run_to_its_end(keeper: Keeper, then: Callable[[], None] = lambda: None) -> None:
    """Run until no worker is left that could be started again; call `then` once the first of them serves."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(keeper.run())
        async for report in keeper.reports():
            if report[0].state is not State.STARTING:
                break
        then()


async def until(keeper: Keeper, condition: Callable[[dict[WorkerId, tuple[State, int]]], bool]) -> None:
    async for report in keeper.reports():
        if condition({each.worker: (each.state, each.starts) for each in report}):
            return


async def test_every_worker_is_started() -> None:
    launchpad = Launchpad()
    async with kept(launchpad, ONE, TWO) as keeper:
        await until(keeper, lambda now: now == {ONE: (State.SERVING, 1), TWO: (State.SERVING, 1)})


async def test_a_dead_worker_is_started_again_and_the_others_are_left_alone() -> None:
    launchpad = Launchpad()
    async with kept(launchpad, ONE, TWO) as keeper:
        await until(keeper, lambda now: now[ONE] == (State.SERVING, 1))
        launchpad.hosts[ONE][0].died.set_result("killed by signal 9")
        await until(keeper, lambda now: now == {ONE: (State.SERVING, 2), TWO: (State.SERVING, 1)})
        assert launchpad.hosts[ONE][0].stopped
        assert keeper.report()[0].why == "killed by signal 9"


async def test_a_worker_that_was_drained_is_not_started_again() -> None:
    launchpad = Launchpad()
    keeper = Keeper([ONE], launchpad, POLICY, LoopClock())
    await run_to_its_end(keeper, then=lambda: launchpad.hosts[ONE][0].died.set_result(""))
    assert keeper.report() == (Kept(ONE, State.STOPPED, 1, "it was drained"),)
    assert [host.stopped for host in launchpad.hosts[ONE]] == [True]


async def test_a_worker_that_cannot_start_says_why_and_is_not_tried_again() -> None:
    launchpad = Launchpad(decode_0=["no such model directory"])
    keeper = Keeper([ONE], launchpad, POLICY, LoopClock())
    await run_to_its_end(keeper)
    assert keeper.report() == (Kept(ONE, State.FAILED, 1, "no such model directory"),)
    assert [host.stopped for host in launchpad.hosts[ONE]] == [True]


async def test_a_worker_that_served_before_is_tried_again_when_a_restart_fails() -> None:
    launchpad = Launchpad(decode_0=[None, "out of memory", None])
    async with kept(launchpad, ONE) as keeper:
        await until(keeper, lambda now: now[ONE] == (State.SERVING, 1))
        launchpad.hosts[ONE][0].died.set_result("killed")
        await until(keeper, lambda now: now[ONE] == (State.SERVING, 3))


async def test_a_crash_loop_ends() -> None:
    launchpad = Launchpad(decode_0=[None, "again", "again", "again"])
    keeper = Keeper([ONE], launchpad, POLICY, LoopClock())
    await run_to_its_end(keeper, then=lambda: launchpad.hosts[ONE][0].died.set_result("killed"))
    assert keeper.report() == (Kept(ONE, State.FAILED, 3, "again"),)


async def test_stopping_stops_every_host_and_starts_none() -> None:
    launchpad = Launchpad()
    async with kept(launchpad, ONE, TWO) as keeper:
        await until(keeper, lambda now: now == {ONE: (State.SERVING, 1), TWO: (State.SERVING, 1)})
    assert not launchpad.hosts[ONE][0].stopped
    await keeper.stop()
    assert [[host.stopped for host in hosts] for hosts in launchpad.hosts.values()] == [[True], [True]]
    assert {each.state for each in keeper.report()} == {State.STOPPED}
