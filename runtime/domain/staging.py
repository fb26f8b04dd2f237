"""Staging slots: the memory that one-sided writers may write into. Owns who may write where; never the bytes.

FREE         nobody may write
GRANTED      one transfer's writer may write at any time, unasked
QUARANTINED  its transfer is over, but a write of it may still arrive: not used until the writer confirmed that
             nothing is in flight, or is dead for longer than a write can take
"""

import enum

from runtime.errors import InvariantViolation
from runtime.ids import TransferId


class SlotState(enum.Enum):
    FREE = "free"
    GRANTED = "granted"
    QUARANTINED = "quarantined"


class Staging:
    def __init__(self, slots: int) -> None:
        self._free = list(range(slots - 1, -1, -1))
        self._granted: dict[TransferId, tuple[int, ...]] = {}
        self._quarantined: dict[TransferId, tuple[int, ...]] = {}
        self._slots = slots

    def try_grant(self, transfer: TransferId, count: int) -> tuple[int, ...] | None:
        """`count` slots for a transfer, or None when there are too few; then nothing changed."""
        if count > len(self._free) or transfer in self._granted:
            return None
        slots = tuple(self._free.pop() for _ in range(count))
        self._granted[transfer] = slots
        return slots

    def quarantine(self, transfer: TransferId) -> None:
        """The transfer is over, its writer may not know it yet."""
        slots = self._granted.pop(transfer, None)
        if slots is not None:
            self._quarantined[transfer] = slots

    def release(self, transfer: TransferId) -> None:
        """No write of this transfer can arrive any more."""
        for place in (self._granted, self._quarantined):
            self._free.extend(place.pop(transfer, ()))

    def writer(self, slot: int) -> TransferId | None:
        """The transfer whose writes may still arrive in a slot."""
        for place in (self._granted, self._quarantined):
            for transfer, slots in place.items():
                if slot in slots:
                    return transfer
        return None

    @property
    def free(self) -> int:
        return len(self._free)

    def describe(self) -> str:
        """Where the slots are, for people."""
        return ", ".join(f"{count} {state.value}" for state, count in self.counts().items())

    def counts(self) -> dict[SlotState, int]:
        granted = sum(map(len, self._granted.values()))
        quarantined = sum(map(len, self._quarantined.values()))
        return {
            SlotState.FREE: len(self._free),
            SlotState.GRANTED: granted,
            SlotState.QUARANTINED: quarantined,
        }

    def check(self) -> None:
        """Invariant 16: every slot is in exactly one place."""
        held = [slot for place in (self._granted, self._quarantined) for slots in place.values() for slot in slots]
        if sorted(held + self._free) != list(range(self._slots)):
            raise InvariantViolation(16, f"staging slots are lost or held twice: {self.counts()}")
