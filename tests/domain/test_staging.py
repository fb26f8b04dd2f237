"""Staging slots: granted all or none, and not used again before the last write of their writer."""

import pytest

from runtime.domain.staging import SlotState, Staging
from runtime.errors import InvariantViolation
from runtime.ids import TransferId

ONE, OTHER = TransferId("one"), TransferId("other")


def counts(staging: Staging) -> tuple[int, int, int]:
    found = staging.counts()
    return found[SlotState.FREE], found[SlotState.GRANTED], found[SlotState.QUARANTINED]


def test_slots_are_granted_all_or_none() -> None:
    staging = Staging(3)
    assert staging.try_grant(ONE, 2) == (0, 1)
    assert staging.try_grant(OTHER, 2) is None
    assert counts(staging) == (1, 2, 0)


def test_a_transfer_gets_slots_once() -> None:
    staging = Staging(4)
    staging.try_grant(ONE, 2)
    assert staging.try_grant(ONE, 2) is None


def test_a_quarantined_slot_is_not_granted_until_its_writer_is_silent() -> None:
    staging = Staging(2)
    staging.try_grant(ONE, 2)
    staging.quarantine(ONE)
    assert counts(staging) == (0, 0, 2)
    assert staging.try_grant(OTHER, 1) is None
    assert staging.writer(0) == ONE
    staging.release(ONE)
    assert staging.try_grant(OTHER, 1) is not None
    staging.check()


def test_a_transfer_that_ended_well_gives_its_slots_back_at_once() -> None:
    staging = Staging(2)
    staging.try_grant(ONE, 1)
    staging.release(ONE)
    assert counts(staging) == (2, 0, 0)
    assert staging.writer(0) is None


def test_late_words_about_a_transfer_change_nothing() -> None:
    staging = Staging(2)
    for late in (staging.quarantine, staging.release):
        late(ONE)
    assert counts(staging) == (2, 0, 0)


def test_check_finds_a_slot_that_is_held_twice() -> None:
    staging = Staging(2)
    staging.try_grant(ONE, 1)
    staging.check()
    staging._free.append(0)
    with pytest.raises(InvariantViolation, match="invariant 16"):
        staging.check()
