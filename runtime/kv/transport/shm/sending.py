"""The sending end of shared memory: connections to receivers on this host, and the transfers over them.

Frames are written on the event loop, each in one go, so that whatever is said on it is said between two writes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count

from runtime.domain.messages import Ticket
from runtime.domain.steps import Frame
from runtime.errors import (
    BatonError,
    DeadlineExceeded,
    Incompatible,
    InvalidArgument,
    ResourceExhausted,
    StaleAttempt,
    Unavailable,
)
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.shm import words as w
from runtime.kv.transport.shm.arena import Arena
from runtime.kv.transport.shm.packets import Connection, connect

_CONNECT_S = 1.0


class ShmWriters:
    """Connections to receivers, kept by endpoint until they end."""

    def __init__(self, codec: FrameCodec) -> None:
        self._codec = codec
        self._links: dict[str, _Link] = {}
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def open(self, ticket: Ticket, endpoint: str) -> AsyncIterator["ShmSender"]:
        """Entering raises `Unavailable` or `ResourceExhausted` saying why, when another path has to do."""
        link = await self._link(endpoint)
        sender = ShmSender(ticket, self._codec, link)
        try:
            await sender.introduce()
            yield sender
        finally:
            await sender.abort()

    def close(self) -> None:
        for link in tuple(self._links.values()):
            link.close()

    async def _link(self, endpoint: str) -> "_Link":
        async with self._connecting:
            link = self._links.get(endpoint)
            if link is None or link.ended:
                link = self._links[endpoint] = await _connected(self._codec, endpoint)
                link.at_end = lambda: self._forget(endpoint)
            return link

    def _forget(self, endpoint: str) -> None:
        self._links.pop(endpoint, None)


async def _connected(codec: FrameCodec, endpoint: str) -> "_Link":
    connection = connect(endpoint)
    try:
        connection.send(w.pack(w.Hello(w.VERSION, codec.fingerprint, codec.max_bytes)))
        async with asyncio.timeout(_CONNECT_S):
            packet, descriptor = await connection.receive_descriptor()
        word = w.unpack(packet)
        if not isinstance(word, w.Arena) or descriptor is None:
            raise Unavailable(word.reason if isinstance(word, w.Declined) else "it handed over no memory")
        return _Link(connection, Arena(descriptor, word.slots, word.slot_bytes))
    except TimeoutError:
        connection.close()
        raise Unavailable(f"it did not hand over its memory within {_CONNECT_S:g} s") from None
    except BaseException:
        connection.close()
        raise


class _Link:
    """A connection with the memory that came over it."""

    def __init__(self, connection: Connection, arena: Arena) -> None:
        self.arena = arena
        self.ended = False
        self.senders: dict[int, ShmSender] = {}
        self.at_end: Callable[[], None] = lambda: None
        self._handles = count(1)
        self._connection = connection
        connection.start(self._on_packet, self.close)

    def say(self, word: w.Word) -> None:
        self._connection.send(w.pack(word))

    def add(self, sender: "ShmSender") -> int:
        handle = next(self._handles)
        self.senders[handle] = sender
        return handle

    def close(self) -> None:
        """Unmap first: the end of the socket tells the receiver that nothing is written any more."""
        if not self.ended:
            self.ended = True
            self.arena.close()
            self._connection.close()
            self.at_end()
            for sender in tuple(self.senders.values()):
                sender.hear(None)

    def _on_packet(self, packet: bytes) -> None:
        with suppress(InvalidArgument):
            word = w.unpack(packet)
            sender = None if isinstance(word, w.Hello | w.Arena | w.Declined) else self.senders.get(word.handle)
            if sender is not None:
                sender.hear(word)


class ShmSender:
    """One transfer. A frame waits for a free slot of those that were granted: that is its window."""

    def __init__(self, ticket: Ticket, codec: FrameCodec, link: _Link) -> None:
        self._ticket = ticket
        self._codec = codec
        self._link = link
        self._ends = asyncio.get_running_loop().time() + ticket.remaining_ms / 1000
        self._handle = link.add(self)
        self._free: list[int] = []
        self._granted = 0
        self._frames = 0
        self._over: BatonError | None = None
        self._committed = False
        self._heard = asyncio.Event()

    async def introduce(self) -> None:
        self._link.say(w.Open(self._handle, self._ticket.epoch, self._ticket.transfer))
        while not self._granted:
            await self._progress()

    async def send(self, frame: Frame) -> None:
        if HEADER_BYTES + len(frame.payload) > self._link.arena.slot_bytes:
            raise Incompatible(f"a frame of {len(frame.payload)} bytes is more than the receiver's slots hold")
        while not self._free:
            await self._progress()
        if self._over is not None:
            raise self._over
        slot = self._free.pop()
        length = self._codec.place(frame, self._link.arena.slot(slot))
        self._link.say(w.Placed(self._handle, slot, length))
        self._frames += 1

    async def commit(self) -> None:
        while len(self._free) < self._granted:
            await self._progress()
        if self._over is None:
            self._link.say(w.Commit(self._handle, self._frames))
        while not self._committed:
            await self._progress()

    async def abort(self) -> None:
        """Every write is over when `send` returns, so there is nothing to wait for."""
        if self._over is None and not self._committed:
            self._end(StaleAttempt("the transfer was given up here"))
            self._link.say(w.Quiet(self._handle))
        self._link.senders.pop(self._handle, None)

    def hear(self, word: w.Word | None) -> None:
        """What the receiver says of this transfer; None when the connection ended."""
        match word:
            case w.Granted(slots=slots):
                # The last is taken first: a receiver lists those last that are warm in the cache.
                self._free, self._granted = list(slots), len(slots)
            case w.Taken(slot=slot):
                self._free.append(slot)
            case w.Committed():
                self._committed = True
            case w.NoRoom(reason=reason):
                self._end(ResourceExhausted(reason))
            case w.Refused(reason=reason):
                self._end(StaleAttempt(reason, field="ticket.epoch"))
            case w.Stop():
                self._end(StaleAttempt("the receiver gave the transfer up"))
                self._link.say(w.Quiet(self._handle))
            case None:
                self._end(Unavailable("the receiver is gone"))
        self._heard.set()

    def _end(self, error: BatonError) -> None:
        self._over = self._over or error

    async def _progress(self) -> None:
        """Wait until the receiver says something; raises what ended the transfer."""
        if self._over is not None:
            raise self._over
        self._heard.clear()
        try:
            async with asyncio.timeout_at(self._ends):
                await self._heard.wait()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed during the transfer", field="ticket.remaining_ms") from None
        if self._over is not None:
            raise self._over
