"""Transactions that carry a session from one store to another: all that is committed, read out and taken in."""

from dataclasses import replace
from typing import Any

from runtime.domain.sessions import UNFINISHED, Key, Session
from runtime.domain.spending import Account, Amounts, Limits
from runtime.errors import FailedPrecondition
from runtime.ids import SessionId, TenantId
from runtime.store.accounting import open_account
from runtime.store.bundle import MAX_BUNDLE_BYTES, Bundle, Rows, too_large
from runtime.store.content import BRANCHES, EVENTS, TABLES, TURNS, Table
from runtime.store.looking import known_result, session_of
from runtime.store.packing import pack_about, pack_policies, unpack_policies
from runtime.store.remembering import of_tenant, remember
from runtime.store.sealing import Seal, new_seal, seal_of
from runtime.store.transaction import Transaction

# The events of a turn that has ended are in its ending.
CARRIED = tuple(table for table in TABLES if table is not EVENTS)
KEYS = ("name", "digest", "result", "at")
_UNFINISHED = {status.value for status in UNFINISHED}


async def read_out(tx: Transaction, tenant: TenantId, session: SessionId) -> Bundle:
    """What has not ended yet is not in it. Its limits are, and what was spent of them: a session does not begin anew
    because it was carried. Raises `TooLarge` naming `session`."""
    found, seal = await session_of(tx, tenant, session), await seal_of(tx, session)
    await _check_size(tx, session)
    row = await tx.row("SELECT lines FROM sessions WHERE id = $1", session)
    assert row is not None
    about = {
        "id": found.id,
        "model": found.model,
        "created": found.created_ms,
        "lines": row[0],
        "rerender": found.rerender,
        "hidden": found.hidden,
        "metadata": dict(sorted(found.metadata.items())),
        "vocabulary": found.vocabulary,
        "policies": pack_policies(found.policies),
        "limits": found.account.limits.each,
        "used": found.account.used.each,
        "ttl_ms": found.account.ttl_ms,
    }
    left = await tx.rows("SELECT id FROM turns WHERE session = $1 AND status IN ('queued', 'running')", session)
    unfinished = {each[0] for each in left}
    tables = [await _rows(tx, session, seal, table, unfinished) for table in CARRIED]
    keys = await tx.rows(f"SELECT {', '.join(KEYS)} FROM keys WHERE scope = $1", session)
    kept = sorted(tuple(each) for each in keys if each[2] not in unfinished)
    return Bundle(about, (*tables, Rows("keys", KEYS, kept)))


async def take_in(tx: Transaction, tenant: TenantId, bundle: Bundle, key: Key | None) -> Session:
    """The bundle was checked. Raises `FailedPrecondition` when the session, or a turn of it, is here or was erased."""
    scope, session = of_tenant(tenant), SessionId(bundle.session["id"])
    if key is not None and (known := await known_result(tx, scope, key)) is not None:
        return await session_of(tx, tenant, SessionId(known))
    await _check_new(tx, session, bundle)
    about, seal = bundle.session, await new_seal(tx, session)
    limits, used = Limits(*about.get("limits", ())), Amounts(*about.get("used", ()))
    account = Account(limits, used, ttl_ms=about.get("ttl_ms"))
    policies, metadata = unpack_policies(about), about["metadata"]
    made = Session(session, tenant, about["model"], about["created"], about["rerender"], metadata, about["vocabulary"])
    await tx.run(
        "INSERT INTO sessions (id, tenant, model, created, lines, rerender, about, hidden)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        session,
        tenant,
        about["model"],
        about["created"],
        about["lines"],
        int(about["rerender"]),
        seal.seal(pack_about(replace(made, policies=policies)), "sessions.about"),
        int(about.get("hidden", False)),
    )
    await open_account(tx, session, account)
    tables = {table.name: table for table in CARRIED}
    for rows in bundle.tables:
        if rows.table == "keys":
            sql = _insert("keys", ("scope", *KEYS))
            await tx.run_many(sql, [(session, *row) for row in rows.rows])
        else:
            table = tables[rows.table]
            sealed = [(session, *_sealed(seal, table, row)) for row in rows.rows]
            await tx.run_many(_insert(table.name, ("session", *table.columns)), sealed)
    await remember(tx, scope, key, session)
    return await session_of(tx, tenant, session)


async def _check_size(tx: Transaction, session: SessionId) -> None:
    """Nobody reads what is far too much for a file; how much it is exactly, who writes that finds out."""
    total = 0
    for table in CARRIED:
        sizes = " + ".join(f"COALESCE(LENGTH({column}), 0)" for column in table.sealed) or "16"
        row = await tx.row(f"SELECT COALESCE(SUM({sizes}), 0) FROM {table.name} WHERE session = $1", session)
        assert row is not None, "a sum is always there"
        total += int(row[0])
    if total > 2 * MAX_BUNDLE_BYTES:
        raise too_large()


async def _check_new(tx: Transaction, session: SessionId, bundle: Bundle) -> None:
    if await tx.row("SELECT 1 FROM sessions WHERE id = $1", session) is not None:
        raise FailedPrecondition(f"session {session} is here already", field="bundle")
    if await tx.row("SELECT 1 FROM erasures WHERE session = $1", session) is not None:
        raise FailedPrecondition(f"session {session} was erased here", field="bundle")
    (turns,) = [rows for rows in bundle.tables if rows.table == TURNS.name]
    for turn, *_ in turns.rows:
        if await tx.row("SELECT 1 FROM turns WHERE id = $1", turn) is not None:
            raise FailedPrecondition(f"turn {turn} is here already", field="bundle")


async def _rows(tx: Transaction, session: SessionId, seal: Seal, table: Table, unfinished: set[str]) -> Rows:
    found = []
    for row in await tx.rows(f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE session = $1", session):
        values = dict(zip(table.columns, row, strict=True))
        if values["id"] in unfinished if table is TURNS else values.get("turn") in unfinished:
            continue
        if table is BRANCHES:
            values["live"] = None
        ident = [values[name] for name in table.key]
        for name in table.sealed:
            if values[name] is not None:
                values[name] = seal.open(values[name], f"{table.name}.{name}", *ident)
        found.append(tuple(values.values()))
    return Rows(table.name, table.columns, sorted(found, key=lambda row: row[: len(table.key)]))


def _sealed(seal: Seal, table: Table, row: tuple[Any, ...]) -> tuple[Any, ...]:
    values = dict(zip(table.columns, row, strict=True))
    ident = [values[name] for name in table.key]
    for name in table.sealed:
        if values[name] is not None:
            values[name] = seal.seal(values[name], f"{table.name}.{name}", *ident)
    return tuple(values.values())


def _insert(table: str, columns: tuple[str, ...]) -> str:
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"
