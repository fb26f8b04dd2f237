"""Drives an engine core on its own thread, so that the event loop never waits for a model.

The core is built on that thread and touched nowhere else, but for reads that are advisory or made while idle.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.domain.steps import Copy, EngineCommand, Forget, Load, StepOutput, Submit
from runtime.engine.core import EngineCore
from runtime.errors import EngineFailed
from runtime.ids import PageId, SequenceId

if TYPE_CHECKING:
    from runtime.domain.spec import ModelSpec

_STEPS_AHEAD = 4
# How often to look, while there is nothing to do, whether there is still something to do it with.
_WATCH_S = 0.5
_log = logging.getLogger(__name__)
# While one thread compiles a graph, torch and transformers see it in all others: a process builds its engines in turn.
_BUILDING = threading.Lock()


class ThreadedEngine:
    """`build` runs on the engine's thread; `start` returns once it is done, or raises what it raised."""

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[EngineCommand | None] = queue.SimpleQueue()
        self._outbox: asyncio.Queue[StepOutput | BaseException] = asyncio.Queue(_STEPS_AHEAD + 1)
        self._room = threading.Semaphore(_STEPS_AHEAD)
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._closing = False
        # Commands for sequences whose grammar is still being compiled.
        self._held: dict[SequenceId | None, list[EngineCommand]] = {}

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._built: asyncio.Future[EngineCore] = self._loop.create_future()
        self._thread.start()
        self._core = await self._built
        self.spec: ModelSpec = self._core.spec
        self._load = self._core.load()

    async def close(self) -> None:
        """Stop after the step that is running now, and wait for the thread."""
        self._closing = True
        self._inbox.put(None)
        self._room.release()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def match(self, chain: Sequence[PageId]) -> int:
        return self._core.match(chain)

    def tell(self, command: EngineCommand) -> None:
        sequence = _sequence(command)
        if sequence in self._held:
            self._held[sequence].append(command)
        elif not isinstance(command, Submit) or not self._hold(command):
            self._inbox.put(command)

    def load(self) -> Load:
        return self._load

    def check(self) -> None:
        self._core.check()

    async def steps(self) -> AsyncIterator[StepOutput]:
        while True:
            item = await self._outbox.get()
            self._room.release()
            if isinstance(item, BaseException):
                raise EngineFailed(f"the engine failed: {type(item).__name__}: {item}") from item
            self._load = item.load
            yield item

    def _hold(self, command: Submit) -> bool:
        """Keep it back while its grammar is compiled, which takes up to seconds: the batch goes on meanwhile."""
        grammar = command.sequence.sampling.grammar
        compiled = None if grammar is None else self._core.compile(grammar)
        if compiled is None or compiled.done():
            return False
        sequence = command.sequence.id
        self._held[sequence] = [command]
        compiled.add_done_callback(lambda _: None if self._closing else self._hand(self._release, sequence))
        return True

    def _release(self, sequence: SequenceId) -> None:
        for command in self._held.pop(sequence):
            self._inbox.put(command)

    def _main(self) -> None:
        try:
            with _BUILDING:
                core = self._build()
        except BaseException as error:  # noqa: BLE001 - the root of a thread: the error goes to whoever started it
            self._hand(self._not_built, error)
            return
        core.take_early = self._take_early
        self._hand(self._is_built, core)
        try:
            while not self._closing:
                self._turn(core)
        except BaseException as error:  # noqa: BLE001 - the root of a thread: the error goes to the role
            _log.exception("the engine failed")
            self._hand(self._outbox.put_nowait, error)
        finally:
            core.close()

    def _turn(self, core: EngineCore) -> None:
        """Take all commands that are there, waiting only when there is nothing else to do, then one step."""
        block = not core.busy
        while True:
            try:
                command = self._inbox.get(block, _WATCH_S)
            except queue.Empty:
                if not block:
                    break
                core.watch()
                continue
            if command is None:
                return
            core.apply(command)
            block = False
        if not core.busy:
            return
        self._room.acquire()
        if not self._closing:
            began = time.perf_counter()
            output = core.step()
            seconds = time.perf_counter() - began
            core.took(seconds)
            self._hand(self._outbox.put_nowait, replace(output, took_ms=seconds * 1000))

    def _take_early(self, output: StepOutput) -> bool:
        """Never waits: a loop that is late must not stop a step."""
        taken = self._room.acquire(blocking=False)
        if taken:
            self._hand(self._outbox.put_nowait, output)
        return taken

    def _is_built(self, core: EngineCore) -> None:
        if not self._built.cancelled():
            self._built.set_result(core)

    def _not_built(self, error: BaseException) -> None:
        if not self._built.cancelled():
            self._built.set_exception(error)

    def _hand(self, call: Callable[[Any], None], value: object) -> None:
        self._loop.call_soon_threadsafe(call, value)


def _sequence(command: EngineCommand) -> SequenceId | None:
    """Of which sequence a command is, if of one."""
    if isinstance(command, Copy | Forget):
        return None
    return command.sequence.id if isinstance(command, Submit) else command.sequence
