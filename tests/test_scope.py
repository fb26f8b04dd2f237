"""What leaves a scope: the body's own error as it is, a task's error in a group."""

import asyncio

import pytest

from runtime.errors import StartError
from runtime.scope import Scope


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("a task")


async def test_the_bodys_error_keeps_its_type_and_ends_the_tasks() -> None:
    tasks = []

    async def body() -> None:
        async with Scope() as scope:
            tasks.append(scope.create_task(forever()))
            raise StartError("the body")

    with pytest.raises(StartError, match="the body"):
        await body()
    assert tasks[0].cancelled()


async def test_a_tasks_error_comes_in_a_group_and_ends_the_body() -> None:
    async def body() -> None:
        async with Scope() as scope:
            _ = scope.create_task(fail())
            await forever()

    with pytest.raises(ExceptionGroup) as failed:
        await body()
    assert [type(error) for error in failed.value.exceptions] == [ValueError]


async def test_no_error_is_lost_when_both_fail() -> None:
    async def body() -> None:
        async with Scope() as scope:
            _ = scope.create_task(fail())
            await asyncio.sleep(0)
            raise StartError("the body")

    with pytest.raises(ExceptionGroup) as failed:
        await body()
    assert {type(error) for error in failed.value.exceptions} == {ValueError, StartError}


async def test_cancelling_the_body_is_cancelling() -> None:
    async def body() -> None:
        async with Scope() as scope:
            _ = scope.create_task(forever())
            await forever()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
