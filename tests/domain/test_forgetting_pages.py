"""Which pages are dropped with a session, and which stay for those who have used them as well."""

from runtime.domain.pages import Occupancy, PagePool
from runtime.ids import PageId, SessionId

ONE, TWO = SessionId("sess-1"), SessionId("sess-2")
IDS = [PageId(bytes([number] * 16)) for number in range(6)]


def cached(pool: PagePool, ids: list[PageId], session: SessionId | None) -> None:
    """What a sequence of a session leaves that has these pages."""
    taken = pool.try_take(ids, len(ids))
    assert taken is not None
    table, hits = taken
    pool.read_by(table[:hits], session)
    for place in range(hits, len(ids)):
        table[place] = pool.publish(table[place], ids[place])
    pool.read_by(table[hits:], session)
    pool.release(table)


def test_what_only_the_session_has_used_is_free_and_found_by_nobody() -> None:
    pool = PagePool(8)
    cached(pool, IDS[:3], ONE)
    assert pool.forget(ONE) == (3, 0)
    assert pool.match(IDS[:3]) == 0
    assert pool.occupancy() == Occupancy(free=8, landing=0, owned=0, cached=0)
    assert pool.drain_changes() == ((), tuple(IDS[:3]))
    pool.check()
    assert pool.forget(ONE) == (0, 0)


def test_what_others_have_used_as_well_stays_for_them() -> None:
    pool = PagePool(8)
    cached(pool, IDS[:3], ONE)
    cached(pool, IDS[:2], TWO)
    assert pool.forget(ONE) == (1, 2)
    assert pool.match(IDS[:3]) == 2
    assert pool.forget(TWO) == (2, 0)
    assert pool.occupancy().free == 8
    pool.check()


def test_a_request_of_no_session_counts_as_somebody() -> None:
    pool = PagePool(8)
    cached(pool, IDS[:2], None)
    cached(pool, IDS[:3], ONE)
    assert pool.forget(ONE) == (1, 2)
    assert pool.match(IDS[:3]) == 2


def test_what_is_in_use_by_another_session_stays() -> None:
    pool = PagePool(8)
    cached(pool, IDS[:2], ONE)
    taken = pool.try_take(IDS[:2], 3)
    assert taken is not None
    pool.read_by(taken[0][:2], TWO)
    assert pool.forget(ONE) == (0, 2)
    pool.release(taken[0])
    assert pool.match(IDS[:2]) == 2
    pool.check()


def test_an_evicted_page_remembers_nobody() -> None:
    pool = PagePool(2)
    cached(pool, IDS[:2], ONE)
    cached(pool, IDS[2:4], TWO)
    assert pool.forget(ONE) == (0, 0)
    assert pool.forget(TWO) == (2, 0)
