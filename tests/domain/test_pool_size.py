"""The size of a pool that nobody named: a share of what is free, within what works and what is of use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.pool_size import Room, Sharing, least_pages, sized_by_share

MIB = 1 << 20
# 1 MiB a page, 128 pages a context; 4 sequences at most.
ROOM = Room(free=1024 * MIB, weights=100 * MIB, page_bytes=MIB, page_tokens=32, max_tokens=4096)
ROOMS = st.builds(
    Room,
    free=st.integers(0, 1 << 40),
    weights=st.integers(0, 1 << 38),
    page_bytes=st.integers(1, 1 << 24),
    page_tokens=st.integers(1, 1024),
    max_tokens=st.integers(1, 1 << 20),
)
SHARINGS = st.builds(
    Sharing,
    share=st.integers(1, 100).map(lambda percent: percent / 100),
    workers=st.integers(1, 64),
    max_running=st.integers(1, 1024),
)


def sized(free: int, share: float = 0.5, workers: int = 1) -> tuple[int, str]:
    size = sized_by_share(
        Room(free * MIB, ROOM.weights, ROOM.page_bytes, ROOM.page_tokens, ROOM.max_tokens), Sharing(share, workers, 4)
    )
    return size.pages, size.account


@pytest.mark.parametrize(
    ("free", "share", "workers", "pages", "account"),
    [
        # One page less than the share holds: the pool has one of zeros.
        (700, 0.5, 1, 299, "299 pages, 300 MiB: 0.5 of what 700 MiB free leave beside weights of 100 MiB"),
        (700, 1.0, 2, 249, "249 pages, 250 MiB: 1 of what 700 MiB free, a part of 2, leave beside weights of 100 MiB"),
        (300, 0.5, 1, 128, "128 pages, 129 MiB: the least that work, more than 0.5 of what 300 MiB free leave"),
        (150, 0.5, 3, 128, "the least that work"),
        (9000, 0.5, 1, 512, "512 pages, 513 MiB: 4 contexts of 4096 tokens, which is all that can be of use"),
    ],
)
def test_the_arithmetic_is_told(free: int, share: float, workers: int, pages: int, account: str) -> None:
    found, told = sized(free, share, workers)
    assert found == pages
    assert account in told


def test_the_least_is_a_whole_context_and_a_page_for_each_sequence() -> None:
    assert least_pages(ROOM, 4) == 128
    assert least_pages(ROOM, 200) == 200


@given(ROOMS, SHARINGS)
def test_a_pool_always_works_and_is_never_larger_than_can_be_of_use(room: Room, sharing: Sharing) -> None:
    pages = sized_by_share(room, sharing).pages
    assert pages * room.page_tokens >= room.max_tokens
    assert sharing.max_running <= pages <= sharing.max_running * room.context_pages


@given(ROOMS, SHARINGS)
def test_workers_that_start_together_do_not_take_more_than_there_is(room: Room, sharing: Sharing) -> None:
    pages = sized_by_share(room, sharing).pages
    if pages > least_pages(room, sharing.max_running):
        together = sharing.workers * room.taken(pages)
        assert together <= room.free
        pools = sharing.workers * (pages + 1) * room.page_bytes
        # The share is a float: its product is off by less than 2 ** -50 of it.
        assert pools <= sharing.share * (room.free - sharing.workers * room.weights) * (1 + 1e-12)


@given(ROOMS, SHARINGS, st.integers(0, 1 << 40))
def test_more_that_is_free_never_makes_a_pool_smaller(room: Room, sharing: Sharing, more: int) -> None:
    larger = Room(room.free + more, room.weights, room.page_bytes, room.page_tokens, room.max_tokens)
    assert sized_by_share(larger, sharing).pages >= sized_by_share(room, sharing).pages
