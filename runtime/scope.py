"""A task group around a process's life, whose own errors keep their type."""

import asyncio
from types import TracebackType


class Scope(asyncio.TaskGroup):
    """Lets what its body raised pass as it is when no task failed; an `ExceptionGroup` means that a task did."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if group.exceptions != (error,):
                raise
