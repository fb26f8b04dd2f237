"""The receiving end of NIXL: grants slots to writers, copies out the frames that they say are there, and fences.

A posted write cannot be recalled, and nobody here can see whether one is still on its way. So a slot that a writer was
granted is nobody else's before that writer said that nothing is in flight. One whose call broke is asked, for as long
as it takes: it may be stopped, or parted from here, and still have writes that wake with it. Only when its process is
known to be gone, and then for the time that what it had sent may still be on its way, is there nobody to ask.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from batonmesh.v1 import nixl_pb2 as pb
from batonmesh.v1 import nixl_pb2_grpc
from runtime.domain.landing import CommitArrived, SenderAborted
from runtime.domain.staging import Staging
from runtime.errors import Incompatible, InvalidArgument, ResourceExhausted, StaleAttempt
from runtime.ids import TransferId
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.arrivals import OpenTransfer, OpenTransfers
from runtime.kv.transport.nixl.memory import Memory
from runtime.kv.transport.nixl.thread import AgentThread

NAME = "nixl"
WINDOW_BYTES = 32 << 20
HOLD_S = 5.0
_WINDOW_SLOTS = 256
_ASK_S = 2.0
_AGAIN_S = 0.5
_MAX_NAME = 256
_Context = grpc.aio.ServicerContext[Any, Any]
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Grant:
    """Slots that an agent may write into; `quiet` once it does so no more. `said` is what it is to be told next."""

    transfer: OpenTransfer
    agent: str
    address: str
    slots: frozenset[int]
    said: pb.WriteResponse
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: bool = False
    quarantined: bool = False

    async def speak(self, context: _Context) -> None:
        """Until it is hung up, and all is said."""
        while True:
            self.heard.clear()
            if self.said.ByteSize():
                saying, self.said = self.said, pb.WriteResponse()
                await context.write(saying)
            elif self.hung_up:
                return
            else:
                await self.heard.wait()

    def hang_up(self) -> None:
        self.hung_up = True
        self.heard.set()


class NixlReceiver:
    """`memory` is what writers may write into, `met` what they need for that. `back` gives the channel to a
    writer. `start` starts what waits for writers to be silent; `hold_s` is as in `NixlPlan`."""

    def __init__(
        self,
        codec: FrameCodec,
        transfers: OpenTransfers,
        memory: Memory,
        thread: AgentThread,
        met: pb.MeetResponse,
        back: Callable[[str], grpc.aio.Channel],
        start: Callable[[Coroutine[Any, Any, None]], None],
        hold_s: float,
    ) -> None:
        self.staging = Staging(memory.slots)
        self.memory = memory
        self._codec = codec
        self._transfers = transfers
        self._met = met
        self._thread = thread
        self._back = back
        self._start = start
        self._hold_s = hold_s
        self._grants: dict[TransferId, _Grant] = {}

    def writing(self) -> int:
        """Transfers whose writer may still write."""
        return len(self._grants)

    def meet(self, request: pb.MeetRequest) -> pb.MeetResponse:
        """Raises `Incompatible` when that writer has no way to here."""
        fingerprint = self._codec.fingerprint.hex()
        for name, theirs, ours in (
            ("backend", request.backend, self._thread.backend),
            ("fingerprint", request.fingerprint, fingerprint),
        ):
            if theirs != ours:
                raise Incompatible(f"it writes by {name} {theirs[:64]!r}, and this worker takes {ours!r}", field=name)
        self._thread.stir()
        return self._met

    async def fence(self, transfer: TransferId) -> None:
        """Returns once no write of a transfer can arrive any more; it may be waited for until its writer wakes up."""
        grant = self._grants.get(transfer)
        if grant is not None:
            self._quarantine(grant)
            grant.said.stop = True
            grant.heard.set()
            await grant.quiet.wait()

    async def write(self, context: _Context) -> None:
        """One call of a writer, for one transfer."""
        request = await context.read()
        if not isinstance(request, pb.WriteRequest) or not request.HasField("open"):
            raise InvalidArgument("the first request opens a transfer", field="open")
        grant = self._granted(request.open)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(grant.speak(context))
                try:
                    await self._hear(grant, context)
                finally:
                    grant.hang_up()
        finally:
            if not grant.quiet.is_set():
                self._broke(grant)

    def _granted(self, opened: pb.WriteOpen) -> _Grant:
        """As many slots as a transfer can use and its window allows; no agent has more than half of all."""
        if not 1 <= len(opened.agent) <= _MAX_NAME or not 1 <= len(opened.address) <= _MAX_NAME:
            raise InvalidArgument("a writer tells its agent and its address", field="open")
        transfer = self._transfers.find(opened.transfer, opened.epoch)
        if transfer.transfer in self._grants:
            self._transfers.refused["writer"] += 1
            raise StaleAttempt("another writer has this transfer", field="transfer")
        held = sum(len(grant.slots) for grant in self._grants.values() if grant.agent == opened.agent)
        share = max(self.memory.slots // 2, 1) - held
        window = max(min(WINDOW_BYTES // self.memory.slot_bytes, _WINDOW_SLOTS), 1)
        count = min(max(transfer.pages, 1), window, share, self.staging.free)
        slots = self.staging.try_grant(transfer.transfer, count) if count > 0 else None
        if slots is None:
            raise ResourceExhausted(f"no staging slot is free: {self.staging.describe()}")
        said = pb.WriteResponse(granted=slots)
        grant = _Grant(transfer, opened.agent, opened.address, frozenset(slots), said)
        grant.heard.set()
        self._grants[transfer.transfer] = grant
        self._expect()
        return grant

    async def _hear(self, grant: _Grant, context: _Context) -> None:
        while isinstance(request := await context.read(), pb.WriteRequest):
            for placed in request.placed:
                self._placed(grant, placed)
            if request.HasField("commit"):
                self._commit(grant, request.commit)
                return
            if request.quiet:
                self._over(grant, "the sender gave up")
                return

    def _placed(self, grant: _Grant, placed: pb.Placed) -> None:
        """Nobody but the writer could have the slot, whatever it says of it."""
        if placed.slot not in grant.slots or not HEADER_BYTES <= placed.length <= self.memory.slot_bytes:
            self._transfers.refused["placed"] += 1
        elif self._transfers.is_open(grant.transfer):
            # Copied before it is looked at: its writer could change it meanwhile.
            self._transfers.land(grant.transfer, bytes(self.memory.slot(placed.slot, placed.length)), NAME)
            grant.said.taken.append(placed.slot)
            grant.heard.set()

    def _commit(self, grant: _Grant, frames: int) -> None:
        transfer, is_open = grant.transfer, self._transfers.is_open(grant.transfer)
        self._release(grant)
        if not is_open:
            raise StaleAttempt("the transfer is not open here: closed, or never opened", field="transfer")
        self._transfers.close(transfer.transfer)
        transfer.sink(CommitArrived(transfer.transfer, transfer.epoch, frames))
        grant.said.committed = True

    def _over(self, grant: _Grant, reason: str) -> None:
        """Nothing is written any more, and nobody committed."""
        self._release(grant)
        self._abort(grant.transfer, reason)

    def _abort(self, transfer: OpenTransfer, reason: str) -> None:
        if self._transfers.is_open(transfer):
            self._transfers.close(transfer.transfer)
            transfer.sink(SenderAborted(transfer.transfer, transfer.epoch, reason))

    def _broke(self, grant: _Grant) -> None:
        """Its call ended without a word, which says nothing about its writes."""
        self._quarantine(grant)
        self._abort(grant.transfer, "the sender went away before its commit")
        self._start(self._silence(grant))

    def _quarantine(self, grant: _Grant) -> None:
        self.staging.quarantine(grant.transfer.transfer)
        grant.quarantined = True
        self._expect()

    def _expect(self) -> None:
        self._thread.expect(sum(not grant.quarantined for grant in self._grants.values()))

    def _release(self, grant: _Grant) -> None:
        """Its writer is quiet."""
        self.staging.release(grant.transfer.transfer)
        del self._grants[grant.transfer.transfer]
        self._expect()
        grant.quiet.set()

    async def _silence(self, grant: _Grant) -> None:
        while True:
            if await self._is_silent(grant):
                self._release(grant)
                return
            await asyncio.sleep(_AGAIN_S)

    async def _is_silent(self, grant: _Grant) -> bool:
        """False when there was no answer, which says nothing either."""
        request = pb.SilenceRequest(agent=grant.agent, transfer=grant.transfer.transfer)
        try:
            answer = await nixl_pb2_grpc.NixlStub(self._back(grant.address)).Silence(request, timeout=_ASK_S)
        except grpc.aio.AioRpcError:
            if not await _is_gone(grant.address):
                return False
        else:
            if answer.agent == grant.agent:
                return True
        _log.info("a writer is gone; its slots are held for %g s", self._hold_s, extra={"agent": grant.agent})
        await asyncio.sleep(self._hold_s)
        return True


async def _is_gone(address: str) -> bool:
    """Whether the host says that nobody listens there any more. One that is stopped still listens, its kernel does; of
    one that cannot be reached nothing is known."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_ASK_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return False
