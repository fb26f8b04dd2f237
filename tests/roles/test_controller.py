"""The controller's role: who watches learns of every change, and silence ends a membership."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.clock import LoopClock
from runtime.domain.messages import View, Worker
from runtime.errors import Incompatible
from runtime.ids import BootId, WorkerId
from runtime.roles.controller import ControllerRole
from tests.roles.virtual import in_virtual_time, now, settle

A = Worker(WorkerId("a"), BootId("boot-a"), "decode", "a:1", "model", "kv", "serving", 96, 4, "cpu x1")


@asynccontextmanager
async def controller(settle_s: float = 0.0) -> AsyncIterator[ControllerRole]:
    role = ControllerRole(incarnation=3, lease_s=8.0, clock=LoopClock(), settle_s=settle_s)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(role.run())
        yield role
        running.cancel()


@in_virtual_time
async def test_who_watches_gets_the_current_view_and_then_every_newer_one() -> None:
    async with controller() as role, asyncio.TaskGroup() as group:
        seen: list[View] = []

        async def watch() -> None:
            async for view in role.views():
                seen.append(view)  # noqa: PERF401 - it never ends

        watching = group.create_task(watch())
        await settle()
        await role.register(A)
        await settle()
        await role.leave(A.id, A.boot)
        await settle()
        watching.cancel()
        assert [view.workers for view in seen] == [(), (A,), ()]
        assert [view.version for view in seen] == sorted({view.version for view in seen})
        assert {view.incarnation for view in seen} == {3}


@in_virtual_time
async def test_who_is_slow_to_watch_skips_to_the_newest_view() -> None:
    async with controller() as role:
        views = role.views()
        await anext(views)
        for _ in range(5):
            await role.register(A)
        assert (await anext(views)).version == role.view().version == 5


@in_virtual_time
async def test_a_worker_that_falls_silent_leaves_when_its_lease_has_run_out() -> None:
    async with controller() as role:
        await role.register(A)
        await asyncio.sleep(7)
        await role.register(A)
        await asyncio.sleep(7.9)
        assert role.view().workers == (A,)
        views = role.views()
        await anext(views)
        assert (await anext(views)).workers == ()
        assert 15 <= now() <= 17


@in_virtual_time
async def test_a_worker_of_another_model_is_refused_and_everybody_hears_why() -> None:
    async with controller() as role:
        await role.register(A)
        views = role.views()
        await anext(views)
        other = Worker(WorkerId("b"), BootId("x"), "decode", "b:1", "other", "kv", "serving", 96, 4, "cpu x1")
        with pytest.raises(Incompatible):
            await role.register(other)
        view = await anext(views)
        assert view.workers == (A,)
        assert [(refused.worker, refused.field) for refused in view.refused] == [("b", "model")]


@in_virtual_time
async def test_a_young_controller_says_that_it_settles_and_when_it_has() -> None:
    async with controller(settle_s=8.0) as role:
        views = role.views()
        assert (await anext(views)).settling
        await role.register(A)
        assert (await anext(views)).settling
        view = await anext(views)
        assert (now(), view.settling, view.workers) == (8.0, False, (A,))
