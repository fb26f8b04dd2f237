"""The tables, and how an older store becomes a newer one. A migration that was released is never changed."""

from runtime.errors import StartError
from runtime.store.transaction import Transaction

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
# What a session may spend and has spent, and what happened to it.
_ACCOUNTS = (
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
MIGRATIONS = (_FIRST, _SECOND, _ACCOUNTS)


async def migrate(tx: Transaction) -> None:
    """Bring the tables up to this Baton's; raises `StartError` when a newer one has been here."""
    await tx.run("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    row = await tx.row("SELECT version FROM schema_version FOR UPDATE")
    version = 0 if row is None else row[0]
    if version > len(MIGRATIONS):
        raise StartError(
            f"sessions.store: its schema has version {version}, this Baton knows {len(MIGRATIONS)}: it is newer"
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            await tx.run(statement)
    if row is None:
        await tx.run("INSERT INTO schema_version (version) VALUES ($1)", len(MIGRATIONS))
    elif version < len(MIGRATIONS):
        await tx.run("UPDATE schema_version SET version = $1", len(MIGRATIONS))
