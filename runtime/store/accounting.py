"""Transactions on a session's account: what is held and spent, what happened to it, and what it is to be.

The account is the last row that a transaction locks, after the session and the branch, so that none waits in a circle.
"""

from dataclasses import replace

from runtime.domain.notices import KEPT_NOTICES, Change, Happening, Notice, What
from runtime.domain.sessions import Ending, Key, TurnRecord
from runtime.domain.spending import NOTHING, Account, Amounts, Reserve
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ids import SessionId, TenantId, TurnId
from runtime.store.looking import account_from, known_result, session_of
from runtime.store.packing import (
    pack_about,
    pack_amounts,
    pack_happening,
    pack_limits,
    pack_reserve,
    unpack_happening,
    unpack_kept,
    unpack_reserve,
)
from runtime.store.remembering import remember
from runtime.store.sealing import seal_of
from runtime.store.transaction import Row, Transaction

_ACCOUNT = """SELECT limits, used, held, version, news, ttl, expires - now_ms(),
    (SELECT t.held FROM turns t WHERE t.id = $2) FROM accounts WHERE session = $1"""
_FORGOTTEN_AT_ONCE = 64


async def open_account(tx: Transaction, session: SessionId, account: Account) -> None:
    await tx.run(
        "INSERT INTO accounts (session, version, news, ttl, expires, limits, used, held)"
        " VALUES ($1, 1, 0, $2, now_ms() + $2, $3, $4, $5)",
        session,
        account.ttl_ms,
        pack_limits(account.limits),
        pack_amounts(account.used),
        pack_amounts(NOTHING),
    )


async def hold(tx: Transaction, turn: TurnRecord, head: TurnId | None, what: What) -> Reserve:
    """Reserve what a turn wants that is to run now, after `head`; raises `BudgetSpent`, or `ResourceExhausted` for a
    while."""
    account, _ = await locked(tx, turn.session, turn.id)
    want = turn.reserve.held
    if head is not None and account.lacks_kv(want):
        account = await _taken_back(tx, turn.session, head, account)
    refusal = account.refusal(want)
    if refusal is not None:
        raise refusal
    held = account.granted(NOTHING, want)
    happening = Happening(what, turn.branch, turn.id, turn.status)
    await _book(tx, turn.session, account.used, account.held + held, happening)
    return Reserve(held)


async def _taken_back(tx: Transaction, session: SessionId, head: TurnId, account: Account) -> Account:
    """The session is back, and a grant that its head left is over: of what that holds, the time to come is free. What
    it came to is counted by the store's clock, because whoever measured it may tell of it too late."""
    row = await tx.row("SELECT kept, kept_until - now_ms() FROM turns WHERE id = $1 AND kept_until > now_ms()", head)
    if row is None:
        return account
    kept = unpack_kept(*row)
    _, held = await locked(tx, session, head)
    left = kept.kv_bytes * kept.remaining_ms // 1000
    return await spend_kept(tx, session, head, max(held.kv_byte_seconds - left, 0))


async def spend_kept(tx: Transaction, session: SessionId, turn: TurnId, byte_seconds: int) -> Account:
    """What is kept of a turn is over and came to so much, of which it pays no more than it held."""
    account, held = await locked(tx, session, turn)
    spent = Amounts(kv_byte_seconds=min(byte_seconds, held.kv_byte_seconds))
    account = replace(account, used=account.used + spent, held=account.held - held)
    await tx.run(
        "UPDATE accounts SET used = $2, held = $3 WHERE session = $1",
        session,
        pack_amounts(account.used),
        pack_amounts(account.held),
    )
    await tx.run("UPDATE turns SET held = NULL, kept = NULL, kept_until = NULL WHERE id = $1", turn)
    return account


async def hold_more(tx: Transaction, turn: TurnRecord, want: Amounts, took: Amounts) -> Amounts:
    """What a running turn holds from now on. Asking again gives it once."""
    account, held = await locked(tx, turn.session, turn.id)
    granted = account.granted(held, want)
    all_held = account.held - held + granted
    await tx.run("UPDATE accounts SET held = $2 WHERE session = $1", turn.session, pack_amounts(all_held))
    await tx.run("UPDATE turns SET held = $2 WHERE id = $1", turn.id, pack_reserve(Reserve(granted, took)))
    return granted


async def settle(tx: Transaction, turn: TurnRecord, ending: Ending) -> None:
    """A running turn ends, and its row still says what it holds: what it took is spent, what is kept of its KV may cost
    stays held, and the rest comes back."""
    account, held = await locked(tx, turn.session, turn.id)
    happening = Happening(What.ENDED, turn.branch, turn.id, ending.status, ending.stop)
    kept = NOTHING if ending.retained is None else ending.retained.reserve
    await _book(tx, turn.session, account.used + ending.took, account.held - held + kept, happening)


async def tell(tx: Transaction, session: SessionId, happening: Happening) -> None:
    """Something happened, so the session's life begins anew. Of the notices the newest are kept."""
    row = await tx.row(
        "UPDATE accounts SET news = news + 1, expires = now_ms() + ttl WHERE session = $1 RETURNING news", session
    )
    await _note(tx, session, row, happening)


async def _book(tx: Transaction, session: SessionId, used: Amounts, held: Amounts, happening: Happening) -> None:
    """As `tell`, together with what is spent and held from now on."""
    row = await tx.row(
        "UPDATE accounts SET used = $2, held = $3, news = news + 1, expires = now_ms() + ttl WHERE session = $1"
        " RETURNING news",
        session,
        pack_amounts(used),
        pack_amounts(held),
    )
    await _note(tx, session, row, happening)


async def _note(tx: Transaction, session: SessionId, counted: Row | None, happening: Happening) -> None:
    assert counted is not None, "every session has its account"
    number: int = counted[0]
    await tx.run(
        "INSERT INTO notices (session, number, at, about) VALUES ($1, $2, now_ms(), $3)",
        session,
        number,
        pack_happening(happening),
    )
    if number % _FORGOTTEN_AT_ONCE == 0:
        await tx.run("DELETE FROM notices WHERE session = $1 AND number <= $2", session, number - KEPT_NOTICES)


async def notices_of(
    tx: Transaction, tenant: TenantId, session: SessionId, after: int, limit: int
) -> tuple[Notice, ...]:
    found = await session_of(tx, tenant, session)
    if after > found.account.notices:
        told = f"after is {after}, the last notice so far has {found.account.notices}"
        raise InvalidArgument(told, field="after")
    rows = await tx.rows(
        "SELECT number, at, about FROM notices WHERE session = $1 AND number > $2 ORDER BY number LIMIT $3",
        session,
        after,
        limit,
    )
    if found.account.notices > after and (not rows or rows[0][0] != after + 1):
        raise FailedPrecondition(f"the notices after {after} are not all kept any more: begin anew", field="after")
    return tuple(Notice(row[0], row[1], unpack_happening(row[2])) for row in rows)


async def update(tx: Transaction, tenant: TenantId, session: SessionId, change: Change, key: Key | None) -> None:
    found = await session_of(tx, tenant, session, lock=True)
    if key is not None and await known_result(tx, session, key) is not None:
        return
    account, _ = await locked(tx, session, None)
    if change.expected_version not in (None, account.version):
        told = f"the session has version {account.version}, not what was expected"
        raise FailedPrecondition(told, field="expected_version")
    if change.metadata is not None:
        found = replace(found, metadata=change.metadata)
    if change.policies is not None:
        found = replace(found, policies=change.policies)
    ttl = account.ttl_ms if change.ttl_ms is None else change.ttl_ms or None
    limits = account.limits if change.limits is None else change.limits
    about = (await seal_of(tx, session)).seal(pack_about(found), "sessions.about")
    await tx.run("UPDATE sessions SET about = $2 WHERE id = $1", session, about)
    await tx.run(
        "UPDATE accounts SET version = version + 1, ttl = $2, limits = $3 WHERE session = $1",
        session,
        ttl,
        pack_limits(limits),
    )
    await tell(tx, session, Happening(What.UPDATED, version=account.version + 1))
    await remember(tx, session, key, str(account.version + 1))


async def locked(tx: Transaction, session: SessionId, turn: TurnId | None) -> tuple[Account, Amounts]:
    """The account, under its lock, and what a turn of it holds."""
    row = await tx.row(f"{_ACCOUNT} FOR UPDATE", session, turn)
    assert row is not None, "every session has its account"
    return account_from(tuple(row)[:-1]), unpack_reserve(row[-1]).held
