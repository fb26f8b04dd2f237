"""The receiving end of shared memory: grants slots to writers, copies announced frames out, and fences.

A slot that a writer was granted may be written at any time, unasked, by a writer that slept through the end of its
transfer. So it is granted to nobody else before that writer has said that it is quiet, or its socket ended. A writer
unmaps the memory before it closes its socket, and the kernel does the same for one that is killed: so the end of the
socket proves that nothing more is written, without any waiting.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from runtime.domain.landing import CommitArrived, SenderAborted
from runtime.domain.staging import Staging
from runtime.errors import InvalidArgument, StaleAttempt
from runtime.ids import TransferId
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.transport.arrivals import OpenTransfer, OpenTransfers
from runtime.kv.transport.shm import words as w
from runtime.kv.transport.shm.arena import Arena
from runtime.kv.transport.shm.packets import Connection, Listener

NAME = "shm"
WINDOW_BYTES = 16 << 20
_WINDOW_SLOTS = 256
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Grant:
    """Slots that a writer may write into; `quiet` once it does so no more."""

    transfer: OpenTransfer
    writer: "_Writer"
    handle: int
    slots: frozenset[int]
    quiet: asyncio.Event = field(default_factory=asyncio.Event)


class ShmReceiver:
    """Listens at `endpoint` for writers on this host. `staging_bytes` bounds the memory that all of them share.

    Raises `Unavailable` when this system lets no memory be shared.
    """

    def __init__(self, codec: FrameCodec, transfers: OpenTransfers, endpoint: str, staging_bytes: int) -> None:
        slots = max(staging_bytes // codec.max_bytes, 2)
        self.endpoint = endpoint
        self.codec = codec
        self.transfers = transfers
        self.staging = Staging(slots)
        self.arena = Arena.make(slots, codec.max_bytes)
        self._grants: dict[TransferId, _Grant] = {}
        self._writers: set[_Writer] = set()
        self._listener = Listener(endpoint, self._connected)

    def writing(self) -> int:
        """Transfers whose writer may still write."""
        return len(self._grants)

    async def fence(self, transfer: TransferId) -> None:
        """Returns once no write of a transfer can arrive any more; it may be waited for until its writer wakes up."""
        grant = self._grants.get(transfer)
        if grant is not None:
            self.staging.quarantine(transfer)
            grant.writer.say(w.Stop(grant.handle))
            await grant.quiet.wait()

    def close(self) -> None:
        """Stop listening, and end every connection: their writers unmap what they have. Waits for nobody."""
        self._listener.close()
        for writer in tuple(self._writers):
            writer.close()
        self.arena.close()

    def grant(self, writer: "_Writer", word: w.Open) -> w.Granted | w.Refused | w.NoRoom:
        """As many slots as a transfer can use and its window allows; no writer has more than half of all."""
        try:
            transfer = self.transfers.find(word.transfer, word.epoch)
        except StaleAttempt as error:
            return w.Refused(word.handle, error.message)
        if transfer.transfer in self._grants:
            self.transfers.refused["writer"] += 1
            return w.Refused(word.handle, "another writer has this transfer")
        share = max(self.arena.slots // 2, 1) - sum(len(grant.slots) for grant in writer.grants.values())
        window = max(min(WINDOW_BYTES // self.arena.slot_bytes, _WINDOW_SLOTS), 1)
        count = min(max(transfer.pages, 1), window, share, self.staging.free)
        slots = self.staging.try_grant(transfer.transfer, count) if count > 0 else None
        if slots is None:
            return w.NoRoom(word.handle, f"no staging slot is free: {self.staging.describe()}")
        grant = _Grant(transfer, writer, word.handle, frozenset(slots))
        self._grants[transfer.transfer] = writer.grants[word.handle] = grant
        return w.Granted(word.handle, slots)

    def release(self, grant: _Grant) -> None:
        """Its writer is quiet."""
        self.staging.release(grant.transfer.transfer)
        del self._grants[grant.transfer.transfer]
        del grant.writer.grants[grant.handle]
        grant.quiet.set()

    def _connected(self, connection: Connection) -> None:
        self._writers.add(_Writer(self, connection))

    def gone(self, writer: "_Writer") -> None:
        self._writers.discard(writer)


class _Writer:
    """A process on this host that writes into the arena."""

    def __init__(self, receiver: ShmReceiver, connection: Connection) -> None:
        self.grants: dict[int, _Grant] = {}
        self._receiver = receiver
        self._connection = connection
        self._greeted = False
        self._warned = False
        connection.start(self._on_packet, self._ended)

    def say(self, word: w.Word) -> None:
        self._connection.send(w.pack(word))

    def close(self) -> None:
        self._connection.close()
        self._ended()

    def _on_packet(self, packet: bytes) -> None:
        try:
            self._on(w.unpack(packet))
        except InvalidArgument as error:
            self._receiver.transfers.refused["packet"] += 1
            if not self._warned:
                # The first is enough to look for; all are counted.
                self._warned = True
                _log.warning("a writer on this host said what is not understood: %s", error.message)

    def _on(self, word: w.Word) -> None:
        match word:
            case w.Hello():
                self._greet(word)
            case w.Open() if self._greeted and word.handle not in self.grants:
                self.say(self._receiver.grant(self, word))
            case w.Placed() if word.handle in self.grants:
                self._placed(self.grants[word.handle], word)
            case w.Commit():
                self._commit(word)
            case w.Quiet():
                # One that crossed with a commit has no grant any more.
                if grant := self.grants.get(word.handle):
                    self._over(grant, "the sender gave up")
            case _:
                raise InvalidArgument(f"{type(word).__name__} is out of place", field="packet")

    def _greet(self, hello: w.Hello) -> None:
        codec, arena = self._receiver.codec, self._receiver.arena
        ours = w.Hello(w.VERSION, codec.fingerprint, codec.max_bytes)
        # A writer of a wider data type makes its frames as narrow as the ticket's before it writes them.
        if (hello.version, hello.fingerprint) != (ours.version, ours.fingerprint):
            self.say(w.Declined(f"it writes {hello}, and this worker reads {ours}"))
        elif not self._greeted:
            self._greeted = True
            self._connection.send(w.pack(w.Arena(arena.slots, arena.slot_bytes)), arena.descriptor)

    def _placed(self, grant: _Grant, word: w.Placed) -> None:
        """Nobody but the writer could have the slot, whatever it says of it."""
        receiver = self._receiver
        if word.slot not in grant.slots or not HEADER_BYTES <= word.length <= receiver.arena.slot_bytes:
            raise InvalidArgument(f"{word} is not within the slots that were granted", field="packet")
        if receiver.transfers.is_open(grant.transfer):
            # Copied before it is looked at: its writer could change it meanwhile.
            frame = bytes(receiver.arena.slot(word.slot, word.length))
            receiver.transfers.land(grant.transfer, frame, NAME)
            self.say(w.Taken(word.handle, word.slot))

    def _commit(self, word: w.Commit) -> None:
        grant = self.grants.get(word.handle)
        transfers = self._receiver.transfers
        if grant is None or not transfers.is_open(grant.transfer):
            self.say(w.Refused(word.handle, "the transfer is not open here: closed, or never opened"))
        else:
            transfers.close(grant.transfer.transfer)
            grant.transfer.sink(CommitArrived(grant.transfer.transfer, grant.transfer.epoch, word.frames))
            self.say(w.Committed(word.handle))
        if grant is not None:
            self._receiver.release(grant)

    def _over(self, grant: _Grant, reason: str) -> None:
        """Nothing is written any more, and nobody committed."""
        transfer, transfers = grant.transfer, self._receiver.transfers
        self._receiver.release(grant)
        if transfers.is_open(transfer):
            transfers.close(transfer.transfer)
            transfer.sink(SenderAborted(transfer.transfer, transfer.epoch, reason))

    def _ended(self) -> None:
        self._receiver.gone(self)
        for grant in tuple(self.grants.values()):
            self._over(grant, "the sender went away before its commit")
