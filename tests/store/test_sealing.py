"""Payloads are unreadable without their session's data key, and that without the store's master key."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runtime.domain.sessions import MAIN, Item, TurnEvent
from runtime.errors import DataCorrupt, NotFound, StartError
from runtime.ids import SessionId
from runtime.session_store import SessionStore
from runtime.store import schema
from runtime.store.content import TABLES
from runtime.store.packing import ROOT_CHAIN, chained, pack, pack_asked, pack_ending, pack_item, pack_tokens
from runtime.store.schema import MIGRATIONS
from runtime.store.sealing import KEY_BYTES, MasterKey, Seal, seal_of
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from runtime.store.transaction import Database, Transaction
from tests.store.conftest import Execute
from tests.store.scanning import opened as decoded
from tests.store.scanning import scan
from tests.store.talking import ASKED, COMMITTED, EVENTS, MASTER, OUTPUT, TENANT, opened, record, session, talked

CANARY = "my dog is called Rumpelstiltskin"
SESSION = SessionId("sess-1")
# asked of three turns, two endings, a prompt; two segments; five items; an event's tokens and text.
LOOKED = 6 + 2 + 5 + 2


def test_a_sealed_value_opens_at_its_own_place_only() -> None:
    seal = Seal(SESSION, bytes(KEY_BYTES))
    sealed = seal.seal(b"what was said", "items.payload", "turn-1", 0)
    assert seal.open(sealed, "items.payload", "turn-1", 0) == b"what was said"
    assert b"said" not in sealed
    assert seal.seal(b"what was said", "items.payload", "turn-1", 0) != sealed
    for other, what, *place in (
        (seal, sealed, "items.payload", "turn-1", 1),
        (seal, sealed, "turns.asked", "turn-1", 0),
        (Seal(SessionId("sess-2"), bytes(KEY_BYTES)), sealed, "items.payload", "turn-1", 0),
        (Seal(SESSION, bytes([1] * KEY_BYTES)), sealed, "items.payload", "turn-1", 0),
        (seal, sealed[:-1], "items.payload", "turn-1", 0),
        (seal, b"\2" + sealed[1:], "items.payload", "turn-1", 0),
        (seal, b"", "items.payload", "turn-1", 0),
    ):
        with pytest.raises(DataCorrupt, match="cannot be opened"):
            other.open(what, str(place[0]), *place[1:])


def test_a_data_key_opens_under_its_master_key_and_for_its_session_only() -> None:
    master, key = MasterKey(bytes(KEY_BYTES)), bytes(range(KEY_BYTES))
    wrapped = master.wrap(SESSION, key)
    assert master.unwrap(SESSION, wrapped) == key
    assert key not in wrapped
    for other, who in ((master, SessionId("sess-2")), (MasterKey(bytes([1] * KEY_BYTES)), SESSION)):
        with pytest.raises(DataCorrupt, match="data key"):
            other.unwrap(who, wrapped)


async def test_every_payload_in_every_table_is_sealed(store: SessionStore, kept: Database) -> None:
    sess = await talked(store, 2)
    place = (await store.context(TENANT, sess, MAIN)).branch
    running = await opened(store, record(sess, "turn-2", place.place, context=place.tokens))
    await store.append(running, TurnEvent(1, 0, (7,), CANARY))

    async def look(tx: Transaction) -> int:
        seal, looked = await seal_of(tx, sess), 0
        for table in TABLES:
            for row in await tx.rows(f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE session = $1", sess):
                values = dict(zip(table.columns, row, strict=True))
                ident = [values[name] for name in table.key]
                for name in table.sealed:
                    if values[name] is not None:
                        seal.open(values[name], f"{table.name}.{name}", *ident)
                        looked += 1
        about = await tx.row("SELECT about FROM sessions WHERE id = $1", sess)
        assert about is not None
        seal.open(about[0], "sessions.about")
        return looked

    assert await kept.read(look) == LOOKED


async def test_what_was_said_is_in_no_file_and_found_by_whoever_has_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    database = SqliteDatabase(folder / "sessions.sqlite", MASTER)
    await database.open()
    store = SqlSessionStore(database)
    sess = await session(store)
    turn = record(sess, items=(Item("user", CANARY),), prompt=tuple(CANARY.encode()))
    running = await opened(store, turn)
    await store.append(running, TurnEvent(1, 0, (7, 8), CANARY))
    assert scan(folder, CANARY, MASTER) == {"items.payload", "turns.prompt", "events.text"}
    await store.finish(running, COMMITTED, (7, 8), (TurnEvent(1, 0, (7, 8), CANARY),))
    assert scan(folder, CANARY, MASTER) == {"items.payload", "segments.tokens", "turns.ending"}
    await database.close()
    assert not [place for place, value in decoded(folder, MASTER) if b"events" in value and CANARY.encode() in value]


async def test_a_payload_of_another_session_or_row_is_noticed(store: SessionStore, execute: Execute) -> None:
    await opened(store, record(await session(store, "sess-1"), "turn-1"))
    turn = await opened(store, record(await session(store, "sess-2"), "turn-2"))
    await execute("UPDATE items SET payload = (SELECT payload FROM items WHERE turn = 'turn-1') WHERE turn = 'turn-2'")
    with pytest.raises(DataCorrupt, match="turn-2"):
        await store.progress(TENANT, turn.session, turn.id, 0)


async def test_without_its_data_key_a_session_is_not_there(store: SessionStore, execute: Execute) -> None:
    sess = await talked(store, 1)
    await execute("DELETE FROM session_keys")
    with pytest.raises(NotFound):
        await store.get(TENANT, sess)
    with pytest.raises(NotFound):
        await store.context(TENANT, sess, MAIN)
    assert await store.list(TENANT, None, 10) == ()


async def test_a_store_under_another_master_key_is_left_alone(kept: Database, store: SessionStore) -> None:
    await talked(store, 1)
    await kept.write(lambda tx: tx.run("UPDATE masters SET id = $1", bytes(16)))
    with pytest.raises(StartError, match=r"sealing\.key: .* another key"):
        await kept.write(schema.migrate)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_an_older_baton_wrote_in_the_clear_is_sealed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    open_it = _sqlite(folder) if kind == "sqlite" else _postgres(request.getfixturevalue("database"))
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS[:2])
    older = await open_it()
    await older.write(_in_the_clear)
    await older.close()
    assert kind == "postgres" or "sessions.sqlite" in scan_files(folder)
    monkeypatch.undo()
    newer = await open_it()
    assert kind == "postgres" or scan_files(folder) == set()
    columns = [f"{table.name}.{name}" for table in TABLES for name in table.sealed]
    for table, column in [name.split(".") for name in (*columns, "sessions.about")]:
        for row in await newer.read(lambda tx, sql=f"SELECT {column} FROM {table}": tx.rows(sql)):  # type: ignore[misc]
            assert row[0] is None or CANARY.encode() not in bytes(row[0]), column
    store = SqlSessionStore(newer)
    found, _ = await store.get(TENANT, SESSION)
    assert found.metadata == {"who": CANARY}
    assert (await store.context(TENANT, SESSION, MAIN)).tokens == (1, 2, 3)
    assert [item.content for *_, item in await store.items(TENANT, SESSION, MAIN, 0, 10)] == [CANARY]
    (taken,) = await store.adopt(record(SESSION).owner, frozenset(), 10)
    assert taken.prepared is not None
    assert taken.prepared.prompt == (5,)
    (event,) = (await store.progress(TENANT, SESSION, taken.id, 0)).events
    assert (event.tokens, event.text) == ((7,), CANARY)
    await newer.close()


def _sqlite(folder: Path) -> Callable[[], Awaitable[Database]]:
    async def open_it() -> Database:
        database = SqliteDatabase(folder / "sessions.sqlite", MASTER)
        await database.open()
        return database

    return open_it


def _postgres(dsn: str) -> Callable[[], Awaitable[Database]]:
    async def open_it() -> Database:
        from runtime.store.postgres import PostgresDatabase

        database = PostgresDatabase(dsn, MASTER)
        await database.open()
        return database

    return open_it


def scan_files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if CANARY.encode() in file.read_bytes()}


async def _in_the_clear(tx: Transaction) -> None:
    """A session with a committed turn and one that runs, as version 2 kept them."""
    about = pack({"metadata": {"who": CANARY}, "vocabulary": "v"})
    insert = (
        "INSERT INTO sessions (id, tenant, model, created, lines, rerender, about) VALUES ($1, $2, 'm', 1, 1, 0, $3)"
    )
    await tx.run(insert, SESSION, TENANT, about)
    await tx.run("INSERT INTO lines (session, line, parent, base) VALUES ($1, 0, NULL, 0)", SESSION)
    await tx.run(
        "INSERT INTO branches (session, name, line, depth, head, tokens, epoch, live)"
        " VALUES ($1, 'main', 0, 1, 'turn-1', 3, 2, 'turn-2')",
        SESSION,
    )
    turn = (
        "INSERT INTO turns (id, session, branch, status, epoch, owner, place, asked, line, depth, prompt, context,"
        " max_tokens, drift, ending) VALUES ($1, $2, 'main', $3, $4, 'gw-dead', 0, $5, 0, $6, $7, 0, 9, 0, $8)"
    )
    asked, ending = pack_asked(ASKED), pack_ending(COMMITTED, OUTPUT, EVENTS)
    await tx.run(turn, "turn-1", SESSION, "committed", 1, asked, 0, None, ending)
    await tx.run(turn, "turn-2", SESSION, "running", 2, asked, 1, pack_tokens((5,)), None)
    await tx.run(
        "INSERT INTO segments (session, line, depth, turn, total, chain, boot, tokens)"
        " VALUES ($1, 0, 1, 'turn-1', 3, $2, NULL, $3)",
        SESSION,
        chained(ROOT_CHAIN, (1, 2, 3)),
        pack_tokens((1, 2, 3)),
    )
    items = "INSERT INTO items (turn, number, session, payload) VALUES ($1, $2, $3, $4)"
    await tx.run(items, "turn-1", 0, SESSION, pack_item(Item("user", CANARY)))
    await tx.run(items, "turn-2", 0, SESSION, pack_item(Item("user", CANARY)))
    events = "INSERT INTO events (turn, seq, session, first, tokens, text) VALUES ($1, 1, $2, 0, $3, $4)"
    await tx.run(events, "turn-2", SESSION, pack_tokens((7,)), CANARY.encode())
