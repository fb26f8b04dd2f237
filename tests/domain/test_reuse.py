"""Where a prompt's KV came from, and the reason for each way in which it was not there again."""

import pytest

from runtime.domain.generation import Delta, Handoffs
from runtime.domain.messages import Handoff
from runtime.domain.reuse import Missed, Past, Sources
from runtime.ids import BootId

HERE, THERE = BootId("boot-here"), BootId("boot-there")
# 100 committed tokens, of which 99 have KV, and of these 12 pages of 8 are full.
PAST = Past(100, 0, HERE, "kv-1", "kv-1", 8)


def found(cached: int, prefill_cached: int = 0, boot: BootId = HERE) -> Handoffs:
    handoffs = Handoffs()
    handoff = Handoff(130, cached, prefill_cached_tokens=prefill_cached)
    handoffs.add(Delta(0, (), "", handoff=handoff, boot=boot))
    # After a failover nothing is cached, which is not the client's doing.
    handoffs.add(Delta(1, (), "", handoff=Handoff(131, 0), attempt=2, boot=THERE))
    return handoffs


def test_what_is_never_cached_is_told_as_that() -> None:
    assert PAST.sources(130, found(96)) == Sources(96, 0, 34, 4, Missed.NEVER_STORED)


def test_what_another_worker_had_was_handed_over() -> None:
    assert PAST.sources(130, found(40, 96)) == Sources(40, 56, 34, 4, Missed.NEVER_STORED)
    assert PAST.sources(130, found(96, 40)) == Sources(96, 0, 34, 4, Missed.NEVER_STORED)


def test_of_a_first_turn_nothing_is_missed() -> None:
    first = Past(0, 0, None, None, "kv-1", 8)
    assert first.sources(130, found(0)) == Sources(0, 0, 130)
    assert first.sources(130, found(64)) == Sources(64, 0, 66), "others said the same before"


@pytest.mark.parametrize(
    ("past", "boot", "why"),
    [
        (PAST, HERE, Missed.EVICTED),
        (PAST, THERE, Missed.BRANCH_COLD),
        (Past(100, 0, HERE, "kv-0", "kv-1", 8), HERE, Missed.MODEL_CHANGED),
        (Past(100, 0, HERE, None, "kv-1", 8), HERE, Missed.EVICTED),
        (Past(100, 0, None, None, "kv-1", 8), HERE, Missed.NEVER_STORED),
        (Past(100, 90, HERE, "kv-1", "kv-1", 8), HERE, Missed.DRIFT),
        (Past(100, 20, HERE, "kv-1", "kv-1", 8), HERE, Missed.EVICTED),
    ],
)
def test_why_what_a_branch_had_was_not_there_again(past: Past, boot: BootId, why: Missed) -> None:
    sources = past.sources(130, found(8, boot=boot))
    assert sources == Sources(8, 0, 122, 92, why)


def test_without_a_worker_there_is_nothing_to_tell() -> None:
    assert PAST.sources(130, Handoffs()) is None
