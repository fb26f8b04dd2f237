"""The tables, and how an older store becomes a newer one. A migration that was released is never changed."""

from collections.abc import Awaitable, Callable

from runtime.errors import StartError
from runtime.store.sealing import new_seal
from runtime.store.transaction import Transaction

Step = str | Callable[[Transaction], Awaitable[None]]
"""A statement, or what no statement can do."""

# Written for PostgreSQL; where SQLite has another word, its driver translates it.
_FIRST = (
    """CREATE TABLE sessions (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, model TEXT NOT NULL, created BIGINT NOT NULL,
        lines INTEGER NOT NULL, rerender INTEGER NOT NULL, about BYTEA NOT NULL)""",
    "CREATE INDEX sessions_listed ON sessions (tenant, created, id)",
    """CREATE TABLE lines (
        session TEXT NOT NULL, line INTEGER NOT NULL, parent INTEGER, base INTEGER NOT NULL,
        PRIMARY KEY (session, line))""",
    """CREATE TABLE branches (
        session TEXT NOT NULL, name TEXT NOT NULL, line INTEGER NOT NULL, depth INTEGER NOT NULL,
        head TEXT, tokens INTEGER NOT NULL, epoch BIGINT NOT NULL, live TEXT, PRIMARY KEY (session, name))""",
    """CREATE TABLE turns (
        id TEXT PRIMARY KEY, session TEXT NOT NULL, branch TEXT NOT NULL, status TEXT NOT NULL, epoch BIGINT NOT NULL,
        owner TEXT NOT NULL, place INTEGER NOT NULL, halt TEXT, asked BYTEA NOT NULL, line INTEGER, depth INTEGER,
        prompt BYTEA, context INTEGER, max_tokens INTEGER, drift INTEGER, ending BYTEA)""",
    "CREATE INDEX turns_unfinished ON turns (owner) WHERE status IN ('queued', 'running')",
    "CREATE INDEX turns_queued ON turns (session, branch, place) WHERE status = 'queued'",
    """CREATE TABLE segments (
        session TEXT NOT NULL, line INTEGER NOT NULL, depth INTEGER NOT NULL, turn TEXT NOT NULL,
        total INTEGER NOT NULL, chain BYTEA NOT NULL, boot TEXT, tokens BYTEA NOT NULL,
        PRIMARY KEY (session, line, depth))""",
    "CREATE INDEX segments_of_turns ON segments (turn)",
    """CREATE TABLE items (
        turn TEXT NOT NULL, number INTEGER NOT NULL, session TEXT NOT NULL, payload BYTEA NOT NULL,
        PRIMARY KEY (turn, number))""",
    "CREATE INDEX items_of_sessions ON items (session)",
    """CREATE TABLE events (
        turn TEXT NOT NULL, seq INTEGER NOT NULL, session TEXT NOT NULL, first INTEGER NOT NULL,
        tokens BYTEA NOT NULL, text BYTEA NOT NULL, PRIMARY KEY (turn, seq))""",
    """CREATE TABLE keys (
        scope TEXT NOT NULL, name TEXT NOT NULL, digest BYTEA NOT NULL, result TEXT NOT NULL,
        PRIMARY KEY (scope, name))""",
    "CREATE TABLE owners (id TEXT PRIMARY KEY, expires BIGINT NOT NULL)",
    "CREATE INDEX turns_of_sessions ON turns (session)",
)
# When a key was used, for those that count for a while only.
_SECOND = ("ALTER TABLE keys ADD COLUMN at BIGINT NOT NULL DEFAULT 0",)


async def _name_master(tx: Transaction) -> None:
    await tx.run("INSERT INTO masters (id) VALUES ($1)", tx.seals.master.id)


async def _seal_what_is_there(tx: Transaction) -> None:
    """Give every session a data key, and put what an older Baton wrote in the clear under it."""
    columns = (
        ("turns", ("id",), ("asked", "prompt", "ending")),
        ("segments", ("turn",), ("tokens",)),
        ("items", ("turn", "number"), ("payload",)),
        ("events", ("turn", "seq"), ("tokens", "text")),
    )
    for (session,) in await tx.rows("SELECT id FROM sessions"):
        seal = await new_seal(tx, session)
        row = await tx.row("SELECT about FROM sessions WHERE id = $1", session)
        assert row is not None
        sealed = seal.seal(bytes(row[0]), "sessions.about")
        await tx.run("UPDATE sessions SET about = $2 WHERE id = $1", session, sealed)
        for table, key, payloads in columns:
            found = await tx.rows(f"SELECT {', '.join((*key, *payloads))} FROM {table} WHERE session = $1", session)
            names = [*payloads, *key]
            which = " AND ".join(f"{name} = ${place}" for place, name in enumerate(names, 1) if name in key)
            what = ", ".join(f"{name} = ${place}" for place, name in enumerate(payloads, 1))
            rows: list[tuple[object, ...]] = []
            for each in found:
                ident, values = tuple(each)[: len(key)], tuple(each)[len(key) :]
                shut = [
                    value if value is None else seal.seal(bytes(value), f"{table}.{name}", *ident)
                    for name, value in zip(payloads, values, strict=True)
                ]
                rows.append((*shut, *ident))
            await tx.run_many(f"UPDATE {table} SET {what} WHERE {which}", rows)


# Payloads under the data key of their session, and that under the master key which `masters` names; what was erased,
# and which workers have been told of it.
_THIRD: tuple[Step, ...] = (
    "CREATE TABLE masters (id BYTEA NOT NULL)",
    "CREATE TABLE session_keys (session TEXT PRIMARY KEY, wrapped BYTEA NOT NULL)",
    """CREATE TABLE erasures (
        session TEXT PRIMARY KEY, tenant TEXT NOT NULL, at BIGINT NOT NULL, counts BYTEA NOT NULL,
        scrubbed INTEGER NOT NULL, pending INTEGER NOT NULL)""",
    "CREATE INDEX erasures_pending ON erasures (at) WHERE pending = 1",
    """CREATE TABLE outbox (
        session TEXT NOT NULL, boot TEXT NOT NULL, worker TEXT NOT NULL, dropped INTEGER, shared INTEGER,
        PRIMARY KEY (session, boot))""",
    _name_master,
    _seal_what_is_there,
)
# What is there without being listed: sessions that were made for a response, turns that are no response (any more).
_FOURTH: tuple[Step, ...] = (
    "ALTER TABLE sessions ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE turns ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX sessions_shown ON sessions (tenant, created, id) WHERE hidden = 0",
    "DROP INDEX sessions_listed",
)
# The calls of turns, on each line whose head such a turn was.
_FIFTH: tuple[Step, ...] = (
    """CREATE TABLE calls (
        session TEXT NOT NULL, line INTEGER NOT NULL, turn TEXT NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL,
        state TEXT NOT NULL, wait BIGINT, deadline BIGINT, payload BYTEA NOT NULL, result BYTEA,
        PRIMARY KEY (session, line, turn, number))""",
    "CREATE INDEX calls_by_id ON calls (session, id)",
)
# What a session may spend and has spent, and what happened to it.
_SIXTH: tuple[Step, ...] = (
    """CREATE TABLE accounts (
        session TEXT PRIMARY KEY, version BIGINT NOT NULL, news BIGINT NOT NULL, ttl BIGINT, expires BIGINT,
        limits BYTEA, used BYTEA, held BYTEA)""",
    "INSERT INTO accounts (session, version, news) SELECT id, 1, 0 FROM sessions",
    "CREATE INDEX accounts_expiring ON accounts (expires) WHERE expires IS NOT NULL",
    """CREATE TABLE notices (
        session TEXT NOT NULL, number BIGINT NOT NULL, at BIGINT NOT NULL, about BYTEA NOT NULL,
        PRIMARY KEY (session, number))""",
    "ALTER TABLE turns ADD COLUMN held BYTEA",
    "ALTER TABLE segments ADD COLUMN fingerprint TEXT",
)
# What is kept of the KV of a turn that has ended, until when, and what that may cost (in `held`).
_SEVENTH: tuple[Step, ...] = (
    "ALTER TABLE turns ADD COLUMN kept BYTEA",
    "ALTER TABLE turns ADD COLUMN kept_until BIGINT",
    "CREATE INDEX turns_kept ON turns (kept_until) WHERE kept_until IS NOT NULL",
)
MIGRATIONS: tuple[tuple[Step, ...], ...] = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH)
_SEALED = MIGRATIONS.index(_THIRD) + 1


async def migrate(tx: Transaction) -> bool:
    """Bring the tables up to this Baton's; says whether there was something to do. Raises `StartError` when a newer one
    has been here, or the store is sealed with another master key."""
    await tx.run("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    row = await tx.row("SELECT version FROM schema_version FOR UPDATE")
    version = 0 if row is None else row[0]
    if version > len(MIGRATIONS):
        raise StartError(
            f"sessions.store: its schema has version {version}, this Baton knows {len(MIGRATIONS)}: it is newer"
        )
    if version >= _SEALED:
        await _check_master(tx)
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            if isinstance(statement, str):
                await tx.run(statement)
            else:
                await statement(tx)
    if row is None:
        await tx.run("INSERT INTO schema_version (version) VALUES ($1)", len(MIGRATIONS))
    elif version < len(MIGRATIONS):
        await tx.run("UPDATE schema_version SET version = $1", len(MIGRATIONS))
    return version < len(MIGRATIONS)


async def _check_master(tx: Transaction) -> None:
    row = await tx.row("SELECT id FROM masters")
    if row is None or bytes(row[0]) != tx.seals.master.id:
        raise StartError("sealing.key: what sessions.store holds is sealed with another key than this one")
