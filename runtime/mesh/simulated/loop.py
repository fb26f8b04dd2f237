"""An event loop whose time jumps to the next timer: hours pass in milliseconds, and every run repeats exactly."""

import asyncio
import itertools
import selectors
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import FileDescriptorLike


class Stalled(AssertionError):
    """Every task waits for something that nothing will bring."""


class _NoSelector(selectors.BaseSelector):
    """Polls nothing: waiting for I/O is where time passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled("all tasks wait and no timer is set")
        self.now += timeout
        return []

    def register(self, fileobj: "FileDescriptorLike", events: int, data: object = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_key(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> "Mapping[FileDescriptorLike, selectors.SelectorKey]":
        return {}


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: groups keep their tasks in sets and cancel them in the order of those."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **how: Any) -> None:  # noqa: ANN401
        self._number = number
        super().__init__(coroutine, **how)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _NoSelector()
        super().__init__(self._virtual)
        numbers = itertools.count()

        def numbered(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **how: Any) -> _Task:  # noqa: ANN401
            return _Task(next(numbers), coroutine, loop=loop, **how)

        self.set_task_factory(numbered)  # type: ignore[arg-type]  # typed as generic in what a task gives

    def time(self) -> float:
        return self._virtual.now
