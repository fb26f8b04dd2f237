"""What a pool keeps for sessions that are away, within quotas (invariant 11)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.pages import ROOT, PagePool, extend_chain
from runtime.domain.retention import (
    MAX_KEEP_MS,
    Granted,
    Keeping,
    Quota,
    Refusal,
    Retention,
)
from runtime.errors import InvalidArgument, InvariantViolation
from runtime.ids import PageId, SequenceId, SessionId
from tests.scale import scaled

ALL = Quota(worker=8, tenant=8)
ONE, TWO = SessionId("sess-1"), SessionId("sess-2")


def chain_of(*path: int) -> list[PageId]:
    """One token fills a page."""
    return extend_chain([], b"salt", path, 1, "f")


def ran(
    pool: PagePool,
    session: SessionId,
    chain: list[PageId],
    quota: Quota | None = None,
    tenant: bytes = b"salt",
    sequence: str | None = None,
) -> Granted | None:
    """A sequence of a session that has run to its end."""
    taken = pool.try_take(chain, len(chain))
    assert taken is not None
    table, hits = taken
    pool.taken_by(table[:hits], session)
    for place in range(hits, len(chain)):
        table[place] = pool.publish(table[place], chain[place], chain[place - 1] if place else ROOT)
    pool.read_by(table[hits:], session)
    name = SequenceId(sequence or session)
    pool.ended(name, table)
    granted = None if quota is None else pool.grant(name, session, tenant, table, quota)
    pool.release(table)
    return granted


def press(pool: PagePool, pages: int = 1) -> None:
    """Something runs that needs room, and is gone."""
    taken = pool.try_take((), pages)
    assert taken is not None
    pool.release(taken[0])
    pool.check()


def test_a_granted_session_finds_its_pages_after_pressure_and_another_does_not() -> None:
    pool, kept, other = PagePool(8), chain_of(1, 2, 3, 4), chain_of(5, 6, 7, 8)
    assert ran(pool, ONE, kept, ALL) == Granted(4)
    ran(pool, TWO, other)
    press(pool, 4)
    assert (pool.match(kept), pool.match(other)) == (4, 0)


def test_a_grant_yields_to_what_runs_last_page_first_and_says_so() -> None:
    pool, kept = PagePool(4), chain_of(1, 2, 3)
    ran(pool, ONE, kept, ALL)
    press(pool, 3)
    assert pool.match(kept) == 1
    assert pool.grants.drain_changes() == (Keeping(SequenceId(ONE), 2), Keeping(SequenceId(ONE), 1))
    press(pool, 4)
    assert pool.grants.drain_changes() == (Keeping(SequenceId(ONE), 0),)


def test_room_that_grants_keep_is_spared_but_what_they_keep_is_used() -> None:
    pool = PagePool(6)
    kept, other = chain_of(1, 2), chain_of(3, 4)
    ran(pool, ONE, kept, ALL)
    ran(pool, TWO, other)
    assert pool.try_take([], 5, sparing=True) is None
    assert pool.try_take([*other, *chain_of(5)], 5, sparing=True) is None
    taken = pool.try_take([*kept, *chain_of(5)], 6, sparing=True)
    assert taken is not None
    assert taken[1] == 2
    pool.release(taken[0])
    pool.check()
    assert len(pool.grants) == 2


def test_a_grant_that_is_over_keeps_nothing() -> None:
    pool, kept, other = PagePool(8), chain_of(1, 2, 3, 4), chain_of(5, 6, 7, 8)
    ran(pool, ONE, kept, ALL)
    ran(pool, TWO, other)
    pool.let_go(SequenceId(ONE))
    assert pool.grants.drain_changes() == (Keeping(SequenceId(ONE), 0),)
    press(pool, 4)
    assert (pool.match(kept), pool.match(other)) == (0, 4), "it was used before the other"
    pool.let_go(SequenceId(ONE))
    assert not pool.grants.changed


def test_a_session_that_is_back_has_used_its_grant() -> None:
    pool, kept = PagePool(8), chain_of(1, 2, 3)
    ran(pool, ONE, kept, ALL, sequence="first")
    # The last page ended otherwise than what the conversation went on with.
    ran(pool, ONE, chain_of(1, 2, 9, 4), ALL, sequence="second")
    assert pool.grants.drain_changes() == (Keeping(SequenceId("first"), 0),)
    assert pool.grants.of(ONE) == [SequenceId("second")]


def test_a_branch_that_leaves_long_before_uses_nothing() -> None:
    pool = PagePool(8)
    ran(pool, ONE, chain_of(1, 2, 3, 4), ALL, sequence="first")
    ran(pool, ONE, chain_of(1, 9), ALL, sequence="second")
    assert pool.grants.of(ONE) == [SequenceId("first"), SequenceId("second")]
    assert len(pool.grants) == 5, "what they share counts once"
    pool.let_go(SequenceId("first"))
    assert len(pool.grants) == 2
    pool.check()


def test_another_session_with_the_same_beginning_uses_nothing() -> None:
    pool = PagePool(8)
    ran(pool, ONE, chain_of(1, 2, 3), ALL)
    ran(pool, TWO, chain_of(1, 2, 3, 4), ALL)
    assert pool.grants.of(ONE) == [SequenceId(ONE)]


@pytest.mark.parametrize(
    ("quota", "chain", "refusal"),
    [
        (Quota(4, 4), chain_of(5, 6), Refusal.TENANT_QUOTA),
        (Quota(4, 9), chain_of(5, 6), Refusal.WORKER_QUOTA),
        (Quota(9, 9), [], Refusal.NO_PAGE),
        (Quota(4, 4), chain_of(1, 2, 3, 4), None),
        (Quota(5, 5), chain_of(5, 6), None),
    ],
)
def test_more_than_a_quota_is_refused_and_says_which(
    quota: Quota, chain: list[PageId], refusal: Refusal | None
) -> None:
    pool = PagePool(16)
    ran(pool, ONE, chain_of(1, 2, 3), ALL)
    assert ran(pool, TWO, chain, quota) == Granted(0 if refusal else len(chain), refusal)
    assert len(pool.grants) <= 5
    pool.check()


def test_a_tenant_has_its_own_part_of_the_quota() -> None:
    pool, quota = PagePool(16), Quota(worker=6, tenant=4)
    assert ran(pool, ONE, chain_of(1, 2, 3), quota, b"a") == Granted(3)
    assert ran(pool, TWO, chain_of(4, 5), quota, b"a") == Granted(0, Refusal.TENANT_QUOTA)
    assert ran(pool, TWO, chain_of(4, 5), quota, b"b") == Granted(2)


def test_an_erased_session_keeps_nothing() -> None:
    pool = PagePool(8)
    ran(pool, ONE, chain_of(1, 2, 3), ALL)
    assert pool.forget(ONE) == (3, 0)
    assert pool.grants.drain_changes() == (Keeping(SequenceId(ONE), 0),)
    assert pool.occupancy().free == 8
    pool.check()


def test_who_is_back_soon_keeps_his_pages_longer_than_who_is_not() -> None:
    pool, soon, late = PagePool(8), chain_of(1, 2, 3, 4), chain_of(5, 6, 7, 8)
    ran(pool, ONE, soon)
    ran(pool, TWO, late)
    pool.expect(SequenceId(ONE), 1.0)
    pool.expect(SequenceId(TWO), 900.0)
    press(pool, 4)
    assert (pool.match(soon), pool.match(late)) == (4, 0)


def test_what_is_told_of_a_sequence_is_not_taken_for_what_uses_its_pages_now() -> None:
    pool, chain = PagePool(4), chain_of(1, 2)
    ran(pool, ONE, chain, sequence="first")
    ran(pool, ONE, chain, sequence="second")
    pool.expect(SequenceId("second"), 1.0)
    pool.expect(SequenceId("first"), 9000.0)
    ran(pool, TWO, chain_of(5, 6))
    pool.expect(SequenceId(TWO), 100.0)
    press(pool, 2)
    assert pool.match(chain) == 2


def test_an_unshared_end_goes_before_the_beginning_that_others_continue() -> None:
    # The shared page was used last by somebody who is back late: what continues it is still not left without it.
    pool = PagePool(4)
    ran(pool, ONE, chain_of(1, 2))
    pool.expect(SequenceId(ONE), 1.0)
    ran(pool, TWO, chain_of(1, 3))
    pool.expect(SequenceId(TWO), 9000.0)
    press(pool, 2)
    assert (pool.match(chain_of(1, 2)), pool.match(chain_of(1, 3))) == (2, 1)


def test_check_finds_a_quota_that_is_exceeded() -> None:
    pool = PagePool(8)
    ran(pool, ONE, chain_of(1, 2, 3), ALL)
    pool.check()
    pool.grants._grants[SequenceId(ONE)].quota = Quota(2, 2)
    with pytest.raises(InvariantViolation, match="invariant 11"):
        pool.check()


PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=4)
USES = st.lists(
    st.tuples(st.integers(0, 3), PATHS, st.booleans(), st.sampled_from([None, 0.1, 5.0, 500.0]), st.integers(0, 4)),
    max_size=30,
)


@given(USES, st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=scaled(60, 2000))
def test_whatever_is_used_a_granted_page_goes_last_and_no_quota_is_exceeded(
    uses: list[tuple[int, list[int], bool, float | None, int]], worker: int, tenant: int
) -> None:
    now = 0.0
    pool = PagePool(8, lambda: now)
    tenants = (b"a", b"b")
    for number, (who, path, asks, returns_s, pressure) in enumerate(uses):
        now += number % 3
        session, salt = SessionId(f"sess-{who}"), tenants[who % 2]
        chain = extend_chain([], salt, path, 1, "f")
        sequence = SequenceId(str(number))
        quota = Quota(worker, min(tenant, worker)) if asks else None
        granted = ran(pool, session, chain, quota, salt, sequence)
        assert granted is None or granted.refusal or granted.pages == len(chain)
        assert len(pool.grants) <= worker
        if returns_s is not None:
            pool.expect(sequence, returns_s)
        if number % 4 == 3:
            pool.let_go(SequenceId(str(number - 2)))
        before = {page: page in pool.grants for page in pool._cached}
        press(pool, pressure)
        gone = [granted for page, granted in before.items() if page not in pool._cached]
        left = [granted for page, granted in before.items() if page in pool._cached]
        assert not any(gone) or all(left), "a page of a grant went before one that is of none"


@pytest.mark.parametrize(("tools", "answer", "field"), [(MAX_KEEP_MS + 1, 0, "tools"), (0, MAX_KEEP_MS + 1, "answer")])
def test_nothing_is_asked_for_longer_than_a_week(tools: int, answer: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Retention(tools, answer).validate("retention")
    assert refused.value.field == f"retention.after_{field}_ms"
    Retention(MAX_KEEP_MS, MAX_KEEP_MS).validate("retention")
