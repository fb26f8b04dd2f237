"""The one thread that owns a NIXL agent: calls it, posts writes, and polls each to its end. Knows no transfer.

Nothing gets on unless it asks, neither what was posted here nor what comes in from others: so it looks often while
there is something to come, and now and then otherwise. A posted write cannot be recalled. So it is asked for until NIXL
says that it is over, however long that takes; its deadline only makes its owner hear that it is late.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

from runtime.errors import BatonError, Unavailable
from runtime.kv.transport.nixl.library import DONE, IN_FLIGHT, Agent, Handle, Library
from runtime.kv.transport.nixl.memory import DOORMAT_BYTES, Region

T = TypeVar("T")
_POLL_S = 0.0001
_IDLE_S = 0.02
_STIRRED_S = 1.0
_TRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Peer:
    """The memory of another agent, connected to."""

    agent: str
    region: Region
    slot_bytes: int


@dataclass(slots=True, eq=False)
class Write:
    """`length` bytes of a slot here to a slot there. `ended` is called once, on the event loop, when it is over: with
    None when it is there. `late` is called there when it is not over at `deadline`, of `time.monotonic`."""

    peer: Peer
    source: int
    target: int
    length: int
    deadline: float
    ended: Callable[[BatonError | None], None]
    late: Callable[[], None]
    was_late: bool = False
    handle: Handle = field(default=None)


class AgentThread:
    def __init__(self, library: Library, name: str, backend: str) -> None:
        self.name = name
        self.backend = backend
        self._library = library
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._posted: list[Write] = []
        self._expected = 0
        self._stirred = 0.0
        self._registrations: list[Handle] = []
        self._agents: set[str] = set()
        self._stopping = False
        self._agent: Agent
        self._source: Region
        self._source_slot_bytes = 0
        self._thread = threading.Thread(target=self._run, name=f"nixl {name}", daemon=True)

    async def start(self) -> None:
        """Raises `Unavailable` when the backend does not start."""
        self._thread.start()
        await self._call(self._begin)

    async def stop(self) -> None:
        """Break every connection and give all memory back. Nobody hears any more of writes that are not over."""
        if self._thread.is_alive():
            await self._call(self._end)
            await asyncio.to_thread(self._thread.join)

    def left(self) -> tuple[int, int]:
        """Registrations and writes that are not over."""
        return len(self._registrations), len(self._posted)

    async def register(self, region: Region) -> Handle:
        """Raises `Unavailable` when the backend cannot write into such memory."""
        return await self._call(lambda: self._register(region))

    def write_from(self, region: Region, slot_bytes: int) -> None:
        """The registered memory that `Write.source` are slots of. Before anything is posted or connected."""
        self._source, self._source_slot_bytes = region, slot_bytes

    async def metadata(self, registration: Handle) -> bytes:
        """What another agent needs in order to write into it."""
        return await self._call(
            lambda: self._agent.get_partial_agent_metadata(registration, inc_conn_info=True, backends=[self.backend])
        )

    async def connect(self, peer: Peer, metadata: bytes) -> None:
        """Connect, and write a word to its doormat. Raises `Unavailable` when that does not get there."""
        await self._call(lambda: self._connect(peer, metadata))

    async def disconnect(self, peer: Peer) -> None:
        await self._call(lambda: self._disconnect(peer.agent))

    def expect(self, transfers: int) -> None:
        """So many have slots here and may be written now."""
        self._jobs.put(lambda: self._expect(transfers))

    def stir(self) -> None:
        """Somebody is about to connect."""
        self._jobs.put(self._stir)

    def post(self, write: Write) -> None:
        self._jobs.put(lambda: self._post(write))

    async def _call(self, job: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except BatonError as error:
                done.set_exception(error)
            except self._library.errors as error:
                done.set_exception(Unavailable(f"NIXL: {type(error).__name__}: {error}"))

        self._jobs.put(run)
        return await asyncio.wrap_future(done)

    # On the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._jobs.get(timeout=self._pause())()
                while not self._jobs.empty():
                    self._jobs.get()()
            except Empty:
                pass
            if not self._stopping:
                self._agent.get_new_notifs()
                self._poll()

    def _pause(self) -> float:
        busy = self._posted or self._expected or time.monotonic() < self._stirred
        return _POLL_S if busy else _IDLE_S

    def _expect(self, transfers: int) -> None:
        self._expected = transfers

    def _stir(self) -> None:
        self._stirred = time.monotonic() + _STIRRED_S

    def _begin(self) -> None:
        try:
            self._agent = self._library.agent(self.name, self.backend)
        except Unavailable:
            self._stopping = True
            raise

    def _end(self) -> None:
        self._stopping = True
        self._posted.clear()
        for agent in tuple(self._agents):
            with suppress(*self._library.errors):
                self._disconnect(agent)
        while self._registrations:
            with suppress(*self._library.errors):
                self._agent.deregister_memory(self._registrations.pop())
        del self._agent

    def _register(self, region: Region) -> Handle:
        kinds = [str(kind) for kind in self._agent.get_backend_mem_types(self.backend)]
        if not any(region.memory in kind for kind in kinds):
            raise Unavailable(f"NIXL's {self.backend} writes into {', '.join(kinds)}, not into {region.memory}")
        registration = self._agent.register_memory(
            [(region.address, region.bytes, region.device, "")], mem_type=region.memory
        )
        self._registrations.append(registration)
        return registration

    def _connect(self, peer: Peer, metadata: bytes) -> None:
        self._agent.add_remote_agent(metadata)
        self._agents.add(peer.agent)
        try:
            self._agent.make_connection(peer.agent)
            self._try(peer)
        except BaseException:
            self._disconnect(peer.agent)
            raise

    def _disconnect(self, agent: str) -> None:
        self._agents.discard(agent)
        self._agent.remove_remote_agent(agent)

    def _try(self, peer: Peer) -> None:
        handle = self._prepared(peer, _doormat(self._source), _doormat(peer.region), 8)
        ends = time.monotonic() + _TRY_S
        state = self._agent.transfer(handle)
        while state == IN_FLIGHT and time.monotonic() < ends:
            time.sleep(_POLL_S)
            state = self._agent.check_xfer_state(handle)
        if state != DONE:
            raise Unavailable(f"a word that NIXL wrote there did not arrive within {_TRY_S:g} s")
        self._agent.release_xfer_handle(handle)

    def _prepared(self, peer: Peer, source: int, target: int, length: int) -> Handle:
        agent, here, there = self._agent, self._source, peer.region
        return agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs([(source, length, here.device)], mem_type=here.memory),
            agent.get_xfer_descs([(target, length, there.device)], mem_type=there.memory),
            peer.agent,
        )

    def _post(self, write: Write) -> None:
        peer = write.peer
        source = self._source.address + write.source * self._source_slot_bytes
        target = peer.region.address + write.target * peer.slot_bytes
        try:
            write.handle = self._prepared(peer, source, target, write.length)
            self._agent.transfer(write.handle)
        except self._library.errors as error:
            self._tell([(write, _broken(error))])
        else:
            self._posted.append(write)

    def _poll(self) -> None:
        going: list[Write] = []
        over: list[tuple[Write, BatonError | None]] = []
        now = time.monotonic()
        for write in self._posted:
            try:
                state = self._agent.check_xfer_state(write.handle)
            except self._library.errors as error:
                over.append((write, _broken(error)))
                continue
            if state == IN_FLIGHT:
                going.append(write)
                self._watch(write, now)
            else:
                over.append((write, None if state == DONE else Unavailable(f"NIXL: the write ended with {state}")))
        if over:
            self._posted = going
            self._tell(over)

    def _watch(self, write: Write, now: float) -> None:
        if now > write.deadline and not write.was_late:
            write.was_late = True
            self._loop.call_soon_threadsafe(write.late)

    def _tell(self, over: list[tuple[Write, BatonError | None]]) -> None:
        for write, _ in over:
            if write.handle is not None:
                self._agent.release_xfer_handle(write.handle)
                write.handle = None
        self._loop.call_soon_threadsafe(_hear, over)


def _hear(over: list[tuple[Write, BatonError | None]]) -> None:
    for write, error in over:
        write.ended(error)


def _doormat(region: Region) -> int:
    return region.address + region.bytes - DOORMAT_BYTES


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"NIXL: {type(error).__name__}: {error}")
