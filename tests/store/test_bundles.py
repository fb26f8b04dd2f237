"""A session as one file: out of one store and into another and back, equal; damaged, forged or too large, refused."""

import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from runtime.domain.retention import Retention
from runtime.domain.sessions import MAIN, OnConflict, Policies, Session, TurnEvent
from runtime.domain.spending import Account, Amounts, Limits, Reserve
from runtime.errors import (
    BudgetSpent,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TooLarge,
)
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store import bundle as bundle_module
from runtime.store import checking, foreign, sessions
from runtime.store.bundle import MAGIC, Kind, read_bundle, write_bundle
from runtime.store.sealing import KEY_BYTES, MasterKey
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.conftest import Rows as CountRows
from tests.store.talking import (
    COMMITTED,
    OTHER,
    TENANT,
    committed,
    enqueued,
    key,
    opened,
    record,
    session,
    talked,
)

CROSSING = SessionId("sess-1")


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[SessionStore]:
    """A store under another master key."""
    database = SqliteDatabase(tmp_path / "elsewhere" / "sessions.sqlite", MasterKey(bytes([9] * KEY_BYTES)))
    await database.open()
    yield SqlSessionStore(database)
    await database.close()


async def grown(store: SessionStore) -> SessionId:
    """A session with forks, a rollback, a cancelled turn, keys, and turns that have not ended."""
    sess = await talked(store, 4)
    await store.fork(TENANT, sess, MAIN, TurnId("turn-1"), "other", key("fork"))
    branch = (await store.context(TENANT, sess, "other")).branch
    await committed(store, record(sess, "turn-a", branch.place, branch="other", context=branch.tokens))
    back = await store.rollback(TENANT, sess, MAIN, TurnId("turn-2"), None)
    found = await store.open(record(sess, "turn-b", back.place, context=back.tokens), key("turn"))
    assert found is not None
    await store.append(found[0], TurnEvent(1, 0, (7,), "seven"))
    await store.open(enqueued(record(sess, "turn-c", None), OnConflict.ENQUEUE), key("waits"))
    return sess


async def said(store: SessionStore, sess: SessionId) -> list[object]:
    """All but what only counts here: of its account the limits go along, and what was spent."""
    found, branches = await store.get(TENANT, sess)
    account = Account(found.account.limits, found.account.used, ttl_ms=found.account.ttl_ms)
    found = replace(found, account=account)
    told: list[object] = [found, branches]
    for branch in branches:
        context = replace(await store.context(TENANT, sess, branch.name), session=found)
        told += [context, await store.items(TENANT, sess, branch.name, 0, 100)]
    return told


async def test_a_session_goes_from_a_store_to_another_and_back(
    store: SessionStore, elsewhere: SessionStore, rows: CountRows
) -> None:
    sess = await grown(store)
    first = await store.read_out(TENANT, sess)
    await elsewhere.take_in(TENANT, first, None)
    second = await elsewhere.read_out(TENANT, sess)
    assert second == first
    there = await said(elsewhere, sess)
    await store.delete(TENANT, sess)
    assert set((await rows()).values()) == {0}
    await store.take_in(TENANT, second, None)
    assert await said(store, sess) == there
    assert await store.read_out(TENANT, sess) == first
    # Without what had not ended; what is there goes on.
    with pytest.raises(NotFound):
        await store.progress(TENANT, sess, TurnId("turn-b"), 0)
    branch = (await store.context(TENANT, sess, MAIN)).branch
    turn = await opened(store, record(sess, "turn-d", branch.place, context=branch.tokens), key("turn"))
    assert turn.epoch > 4


async def test_what_goes_along_is_all_that_was_committed(store: SessionStore, elsewhere: SessionStore) -> None:
    sess = await talked(store, 3)
    before = await said(store, sess)
    await elsewhere.take_in(TENANT, await store.read_out(TENANT, sess), None)
    assert await said(elsewhere, sess) == before
    assert (await elsewhere.progress(TENANT, sess, TurnId("turn-1"), 0)) == (
        await store.progress(TENANT, sess, TurnId("turn-1"), 0)
    )


async def test_taking_in_under_a_key_happens_once(store: SessionStore, elsewhere: SessionStore) -> None:
    data = await store.read_out(TENANT, await talked(store, 1))
    for _ in range(2):
        assert (await elsewhere.take_in(TENANT, data, key("import"))).id == CROSSING
    with pytest.raises(FailedPrecondition) as again:
        await elsewhere.take_in(TENANT, data, None)
    assert again.value.field == "bundle"
    await elsewhere.erase(TENANT, CROSSING)
    with pytest.raises(FailedPrecondition, match="erased"):
        await elsewhere.take_in(TENANT, data, None)


async def test_a_hidden_session_is_hidden_wherever_it_goes(store: SessionStore, elsewhere: SessionStore) -> None:
    made = await store.create(Session(CROSSING, TENANT, "model", 0, rerender=False, hidden=True), None)
    taken = await elsewhere.take_in(TENANT, await store.read_out(TENANT, made.id), None)
    assert taken.hidden
    assert await elsewhere.list(TENANT, None, 10) == ()


async def test_a_session_keeps_its_limits_and_what_was_spent_wherever_it_goes(
    store: SessionStore, elsewhere: SessionStore
) -> None:
    account = Account(Limits(turns=2), ttl_ms=60_000)
    policies = Policies(OnConflict.ENQUEUE, cancel_unwatched=True, retention=Retention(5, 7))
    made = await store.create(Session(CROSSING, TENANT, "model", 0, policies=policies, account=account), None)
    one = Amounts(1, 0, 3, 1, 5, 6)
    await committed(store, replace(record(made.id), reserve=Reserve(one)), replace(COMMITTED, took=one))
    taken = await elsewhere.take_in(TENANT, await store.read_out(TENANT, made.id), None)
    assert (taken.account.limits, taken.account.used, taken.account.held) == (Limits(turns=2), one, Amounts())
    assert (taken.account.ttl_ms, taken.policies) == (60_000, policies)
    base = (await elsewhere.context(TENANT, made.id, MAIN)).branch
    second = record(made.id, "turn-2", base.place, context=base.tokens)
    await committed(elsewhere, replace(second, reserve=Reserve(one)), replace(COMMITTED, took=one))
    base = (await elsewhere.context(TENANT, made.id, MAIN)).branch
    third = record(made.id, "turn-3", base.place, context=base.tokens)
    with pytest.raises(BudgetSpent) as refused:
        await elsewhere.open(replace(third, reserve=Reserve(one)), None)
    assert refused.value.field == "limits.turns"


async def test_a_file_that_tells_no_limits_has_none(store: SessionStore, elsewhere: SessionStore) -> None:
    """As an older Baton wrote them."""
    read = read_bundle(await store.read_out(TENANT, await talked(store, 1)))
    about = {name: told for name, told in read.session.items() if name not in ("limits", "used", "ttl_ms", "policies")}
    taken = await elsewhere.take_in(TENANT, write_bundle(replace(read, session=about)), None)
    assert (taken.account, taken.policies) == (Account(), Policies())


async def test_tokens_that_swell_together_are_refused_before_they_are_kept(
    store: SessionStore, elsewhere: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each column is within its bound."""
    sess = await talked(store, 4)
    data = await store.read_out(TENANT, sess)
    monkeypatch.setattr(checking, "MAX_INFLATED_BYTES", 1 << 20)
    read = read_bundle(data)
    swollen = b"\1" + zlib.compress(bytes(400_000), 9)
    tables = [
        replace(rows, rows=[(*row[:-1], swollen) for row in rows.rows]) if rows.table == "segments" else rows
        for rows in read.tables
    ]
    with pytest.raises(InvalidArgument, match="more than 1 MiB"):
        await elsewhere.take_in(TENANT, write_bundle(replace(read, tables=tuple(tables))), None)
    # What could not be taken in is not written either.
    monkeypatch.setattr(sessions, "MAX_INFLATED_BYTES", 30)
    with pytest.raises(TooLarge):
        await store.read_out(TENANT, sess)


async def test_a_payload_is_looked_at_before_it_is_unpacked(
    store: SessionStore, elsewhere: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await store.read_out(TENANT, await talked(store, 1))
    for bound in ("MAX_PAYLOAD_BYTES", "_MAX_CONTAINERS"):
        with monkeypatch.context() as patch:
            patch.setattr(foreign, bound, 1)
            with pytest.raises(InvalidArgument) as refused:
                await elsewhere.take_in(TENANT, data, None)
        assert refused.value.field == "bundle"
    await elsewhere.take_in(TENANT, data, None)


async def test_what_a_dropped_branch_left_still_goes_along(store: SessionStore, elsewhere: SessionStore) -> None:
    """`three` was rolled back to before what it has of `two`, which is dropped."""
    sess = await talked(store, 1)
    for source, name, turn in ((MAIN, "two", "turn-a"), ("two", "three", "turn-b")):
        await store.fork(TENANT, sess, source, None, name, None)
        at = (await store.context(TENANT, sess, name)).branch
        await committed(store, record(sess, turn, at.place, branch=name, context=at.tokens))
    await store.rollback(TENANT, sess, "three", TurnId("turn-0"), None)
    await store.drop_branch(TENANT, sess, "two")
    await elsewhere.take_in(TENANT, await store.read_out(TENANT, sess), None)
    assert await said(elsewhere, sess) == await said(store, sess)


async def test_a_session_of_another_tenant_is_not_read_out(store: SessionStore) -> None:
    sess = await talked(store, 1)
    with pytest.raises(NotFound):
        await store.read_out(OTHER, sess)


async def test_every_bit_that_was_flipped_and_every_cut_is_noticed(
    elsewhere: SessionStore, store: SessionStore
) -> None:
    data = await store.read_out(TENANT, await talked(store, 2))
    for place in range(0, len(data), 7):
        with pytest.raises(InvalidArgument) as flipped:
            read_bundle(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert flipped.value.field == "bundle"
        with pytest.raises(InvalidArgument):
            read_bundle(data[:place])
    with pytest.raises(InvalidArgument, match="follows its end"):
        read_bundle(data + b"\0")
    with pytest.raises(InvalidArgument):
        await elsewhere.take_in(TENANT, data[:-1], None)
    assert await elsewhere.list(TENANT, None, 10) == ()


async def test_pages_in_a_bundle_are_passed_by_and_a_newer_version_is_refused(store: SessionStore) -> None:
    data = await store.read_out(TENANT, await talked(store, 1))
    with_pages = _ended(data[: -5 - 32] + bytes((Kind.KV,)) + (3).to_bytes(4, "big") + b"\1\2\3")
    assert read_bundle(with_pages) == read_bundle(data)
    with pytest.raises(InvalidArgument, match="version is 2"):
        read_bundle(_ended(MAGIC + b"\0\2" + data[len(MAGIC) + 2 : -5 - 32]))
    with pytest.raises(InvalidArgument, match="unknown kind 9"):
        read_bundle(_ended(data[: -5 - 32] + b"\x09\0\0\0\0"))


async def test_what_is_too_large_is_refused_either_way(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sess = await talked(store, 1)
    data = await store.read_out(TENANT, sess)
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", len(data))
    assert await store.read_out(TENANT, sess) == data
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", len(data) - 1)
    with pytest.raises(TooLarge) as out:
        await store.read_out(TENANT, sess)
    assert out.value.field == "session"
    with pytest.raises(TooLarge) as taken:
        await store.take_in(TENANT, data, None)
    assert taken.value.field == "bundle"


async def test_a_turn_that_is_here_already_is_not_taken_in(store: SessionStore, elsewhere: SessionStore) -> None:
    data = await store.read_out(TENANT, await talked(store, 1))
    await committed(elsewhere, record(await session(elsewhere, "sess-2"), "turn-0"))
    with pytest.raises(FailedPrecondition, match="turn-0 is here already"):
        await elsewhere.take_in(TENANT, data, None)
    assert [each.id for each in await elsewhere.list(TENANT, None, 10)] == ["sess-2"]


def _ended(data: bytes) -> bytes:
    """With the end that belongs to it."""
    return data + bytes((Kind.END,)) + (32).to_bytes(4, "big") + blake2b(data, digest_size=32).digest()
