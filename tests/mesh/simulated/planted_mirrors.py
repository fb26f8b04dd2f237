"""Bugs of copies that the simulation has to find: switches that patch production code, or the world."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.landing import Landing
from runtime.domain.messages import Ticket, TicketPage
from runtime.domain.steps import StepOutput
from runtime.ids import SequenceId, TransferId
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.mesh.simulated.onesided import OneSidedTransport
from runtime.roles.holding import HoldingRole
from runtime.roles.tapping import Tapped

Patch = pytest.MonkeyPatch
_CHECKSUM_BYTES = 8


def copy_accepted_without_its_checksum(patch: Patch) -> None:
    """Whoever is to hold a page for another believes whatever comes."""
    ticket, announced = HoldingRole._ticket, OneSidedTransport.announced
    of_copies: set[TransferId] = set()

    def issued(
        self: HoldingRole, landing: Landing, pages: tuple[TicketPage, ...], endpoint: str, remaining_ms: int
    ) -> Ticket:
        of_copies.add(landing.transfer)
        return ticket(self, landing, pages, endpoint, remaining_ms)

    def believed(
        self: OneSidedTransport, transfer: TransferId, epoch: int, index: int, slot: int | None, data: bytes
    ) -> None:
        if transfer in of_copies:
            data = _sealed_again(self.codec, data if slot is None else self.memory[slot])
            announced(self, transfer, epoch, index, None, data)
            return
        announced(self, transfer, epoch, index, slot, data)

    patch.setattr(HoldingRole, "_ticket", issued)
    patch.setattr(OneSidedTransport, "announced", believed)


def _sealed_again(codec: FrameCodec, data: bytes) -> bytes:
    """With the checksum of what is there."""
    fields, payload = data[: HEADER_BYTES - _CHECKSUM_BYTES], data[HEADER_BYTES:]
    return fields + codec.digest(fields, payload).to_bytes(_CHECKSUM_BYTES, "little") + payload


def copy_of_another_page_in_its_place(patch: Patch) -> None:
    """What is read out of the pool is told under the names of its neighbours."""
    original = Tapped._without_copies

    def shifted(self: Tapped, step: StepOutput) -> StepOutput:
        payloads = [each.payload for each in step.copied]
        if None not in payloads:
            turned = zip(step.copied, (*payloads[1:], payloads[0]), strict=True)
            step = replace(step, copied=tuple(replace(each, payload=payload) for each, payload in turned))
        return original(self, step)

    patch.setattr(Tapped, "_without_copies", shifted)


def copies_given_up_without_a_fence(patch: Patch) -> None:
    def fence(self: HoldingRole, landing: Landing) -> None:
        landing.fenced()

    patch.setattr(HoldingRole, "_fence", fence)


def reservation_for_copies_never_freed(patch: Patch) -> None:
    def cancel(self: Tapped, sequence: SequenceId) -> None:
        """It is forgotten."""

    patch.setattr(Tapped, "cancel", cancel)


MIRROR_BUGS: dict[Callable[[Patch], None], set[int]] = {
    copy_accepted_without_its_checksum: {8},
    copy_of_another_page_in_its_place: {8},
    copies_given_up_without_a_fence: {16},
    reservation_for_copies_never_freed: {16},
}
"""Each bug with the invariants that may find it."""
