"""The transfers that may land on this worker now, whichever way their frames come; and what was refused, by reason.

Keeps nothing of a transfer that is not open, and never decides what becomes of a frame: that is the sink's.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from runtime.domain.landing import FrameArrived, FrameCorrupt, LandingEvent
from runtime.errors import DataCorrupt, StaleAttempt
from runtime.ids import TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.packing import unpacked
from runtime.kv.parts import Joined

Sink = Callable[[LandingEvent], None]


@dataclass(frozen=True, slots=True, eq=False)
class OpenTransfer:
    """`pages` is how many were asked for, `parts` are of those that are not whole yet."""

    transfer: TransferId
    epoch: int
    pages: int
    sink: Sink
    parts: Joined


class OpenTransfers:
    """`refused` counts frames by the field that was wrong, and calls by what made them stale; its keys are words of
    ours and never come from outside."""

    def __init__(self, codec: FrameCodec) -> None:
        self.refused: Counter[str] = Counter()
        self._codec = codec
        self._open: dict[str, OpenTransfer] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, transfer: TransferId, epoch: int, pages: int, sink: Sink) -> None:
        assert transfer not in self._open, f"{transfer} is open already"
        self._open[transfer] = OpenTransfer(transfer, epoch, pages, sink, Joined(self._codec.spec, pages))

    def find(self, transfer: str, epoch: int) -> OpenTransfer:
        """Raises `StaleAttempt` saying why when it may not land."""
        found = self._open.get(transfer)
        if found is None:
            self.refused["transfer"] += 1
            raise StaleAttempt(f"transfer {transfer[:128]} is not open here: closed, or never opened", field="transfer")
        if found.epoch != epoch:
            self.refused["epoch"] += 1
            raise StaleAttempt(f"transfer {transfer} is open with epoch {found.epoch}, not {epoch}", field="epoch")
        return found

    def take(self, transfer: str, epoch: int) -> OpenTransfer:
        """Find and close it."""
        found = self.find(transfer, epoch)
        del self._open[transfer]
        return found

    def close(self, transfer: str) -> None:
        self._open.pop(transfer, None)

    def is_open(self, transfer: OpenTransfer) -> bool:
        return self._open.get(transfer.transfer) is transfer

    def land(self, transfer: OpenTransfer, data: bytes | memoryview, path: str) -> bool:
        """Check one frame that came by `path`, and tell the sink once its page is whole; whether it was good."""
        try:
            page = transfer.parts.add(unpacked(self._codec.decode(data), self._codec.spec))
        except DataCorrupt as error:
            self.refused[str(error.field)] += 1
            transfer.sink(FrameCorrupt(transfer.transfer, transfer.epoch, None, error.message))
            return False
        if page is not None:
            transfer.sink(FrameArrived(transfer.transfer, transfer.epoch, page, path))
        return True
