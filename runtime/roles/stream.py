"""A gateway's stream to one decode worker: connects on demand, carries commands out and batches in, tells its end.

Owns the connection; knows nothing of turns. A stream that stays silent is as good as broken: the worker is frozen or
the network parted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from runtime.domain.messages import Acknowledge, Attach, CancelAttempt, GatewayCommand, Paused, Start, StepBatch
from runtime.errors import BatonError, Unavailable
from runtime.ids import BootId
from runtime.pacing import let_others_run
from runtime.ports import DecodePeer, DecodeStream


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """`attach_s` bounds connecting up to the worker's first word, `silence_s` how long it may say nothing after it;
    `commands` bounds what waits to be sent."""

    attach_s: float = 3.0
    silence_s: float = 5.0
    commands: int = 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """`greeted`: the worker had spoken on this connection. `refused`: nobody was there to connect to."""

    greeted: bool
    refused: bool


class Stream:
    def __init__(
        self,
        boot: BootId,
        peer: DecodePeer,
        settings: StreamSettings,
        group: asyncio.TaskGroup,
        on_batch: Callable[[StepBatch], None],
        on_end: Callable[["Stream", Ended], None],
    ) -> None:
        self.boot = boot
        self.turns = 0
        self._peer = peer
        self._settings = settings
        self._group = group
        self._on_batch = on_batch
        self._on_end = on_end
        self._outgoing: asyncio.Queue[GatewayCommand] = asyncio.Queue(settings.commands)
        self._closing = asyncio.Event()
        self._session: asyncio.Task[None] | None = None

    def send(self, command: Start | Attach) -> None:
        """Send, connecting first when there is no connection. A full queue ends the connection."""
        if self._session is None:
            self._outgoing = asyncio.Queue(self._settings.commands)
            self._closing = asyncio.Event()
            self._session = self._group.create_task(self._run())
        self._put(command)

    def tell(self, command: CancelAttempt | Acknowledge | Paused) -> None:
        """Send if there is a connection; else the worker goes by its own grace."""
        if self._session is not None:
            self._put(command)

    def close(self) -> None:
        """End the connection, at the latest when it would be made."""
        self._closing.set()

    def _put(self, command: GatewayCommand) -> None:
        if self._outgoing.full():
            self.close()
        else:
            self._outgoing.put_nowait(command)

    async def _run(self) -> None:
        """One connection; when the whole gateway stops it is cancelled, and nobody asks for its end."""
        ended = await self._connect()
        self._session = None
        self._on_end(self, ended)

    async def _connect(self) -> Ended:
        greeted = refused = False
        try:
            async with asyncio.timeout(self._settings.attach_s) as attaching, self._peer.attach() as stream:
                batches = aiter(stream.batches())
                first = await anext(batches, None)
                if first is not None:
                    greeted = True
                    attaching.reschedule(None)
                    self._on_batch(first)
                    await self._exchange(stream, batches)
        except* BatonError:
            refused = not greeted
        except* TimeoutError:
            pass
        return Ended(greeted, refused)

    async def _exchange(self, stream: DecodeStream, batches: AsyncIterator[StepBatch]) -> None:
        async with asyncio.TaskGroup() as group:
            others = group.create_task(self._write(stream)), group.create_task(self._wait_closed())
            await self._read(batches)
            for task in others:
                task.cancel()

    async def _read(self, batches: AsyncIterator[StepBatch]) -> None:
        while True:
            async with asyncio.timeout(self._settings.silence_s):
                batch = await anext(batches, None)
            if batch is None:
                return
            self._on_batch(batch)

    async def _write(self, stream: DecodeStream) -> None:
        """Commands that are ready together go out together."""
        while True:
            commands = [await self._outgoing.get()]
            while not self._outgoing.empty():
                commands.append(self._outgoing.get_nowait())
            await stream.send(*commands)
            await let_others_run()

    async def _wait_closed(self) -> None:
        await self._closing.wait()
        raise Unavailable("this end gave the stream up")
