"""What the transactions read: sessions, branches, turns and the history that a branch stands on."""

from collections.abc import Sequence
from dataclasses import replace

from runtime.domain.sessions import (
    Branch,
    Context,
    Halt,
    Item,
    Key,
    Place,
    Prepared,
    Progress,
    Session,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.domain.spending import Account
from runtime.domain.tools import NO_TOOLS, OPEN, CallState, Pending, Toolbox, timed_out
from runtime.errors import DataCorrupt, FailedPrecondition, NotFound
from runtime.ids import BootId, GatewayId, SessionId, TenantId, TurnId
from runtime.store.packing import (
    ROOT_CHAIN,
    UNREADABLE,
    chained,
    unpack,
    unpack_amounts,
    unpack_asked,
    unpack_call,
    unpack_ending,
    unpack_events,
    unpack_instructions,
    unpack_item,
    unpack_kept,
    unpack_limits,
    unpack_policies,
    unpack_reserve,
    unpack_tokens,
    unpack_toolbox,
)
from runtime.store.sealing import Seal, seal_of
from runtime.store.transaction import Row, Transaction

_SESSION = """SELECT s.id, s.tenant, s.model, s.created, s.rerender, s.about, s.hidden, k.wrapped, a.limits, a.used,
    a.held, a.version, a.news, a.ttl, a.expires - now_ms()
    FROM sessions s JOIN session_keys k ON k.session = s.id JOIN accounts a ON a.session = s.id"""
_BRANCH = "SELECT name, line, depth, head, tokens, epoch, live FROM branches WHERE session = $1"
_BRANCHES = """SELECT b.name, b.line, b.depth, b.head, b.tokens, b.epoch, b.live, t.kept, t.kept_until - now_ms()
    FROM branches b LEFT JOIN turns t ON t.id = b.head WHERE b.session = $1 ORDER BY b.name"""
_TURN = """SELECT t.id, t.session, s.tenant, t.branch, s.model, t.status, t.epoch, t.owner, t.asked, t.line, t.depth,
    t.prompt, t.context, t.max_tokens, t.drift, t.halt, t.ending, k.wrapped, t.held
    FROM turns t JOIN sessions s ON s.id = t.session JOIN session_keys k ON k.session = t.session"""
_ITEMS = "SELECT turn, number, payload FROM items WHERE turn = $1 ORDER BY number"
# The lines that a place stands on, each up to the depth where the next one leaves it.
PATH = """WITH RECURSIVE path (line, base, upto) AS (
    SELECT line, base, CAST($3 AS INTEGER) FROM lines WHERE session = $1 AND line = $2
    UNION ALL
    SELECT l.line, l.base, p.base
    FROM path p JOIN lines own ON own.session = $1 AND own.line = p.line
    JOIN lines l ON l.session = $1 AND l.line = own.parent)"""


def _no_session() -> NotFound:
    return NotFound("there is no such session", field="session")


async def session_of(tx: Transaction, tenant: TenantId, session: SessionId, *, lock: bool = False) -> Session:
    suffix = " FOR UPDATE OF s" if lock else ""
    row = await tx.row(f"{_SESSION} WHERE s.id = $1 AND s.tenant = $2{suffix}", session, tenant)
    if row is None:
        raise _no_session()
    return _session(tx, row)


async def sessions_of(tx: Transaction, tenant: TenantId, after: SessionId | None, limit: int) -> tuple[Session, ...]:
    """What is on the page, its index says alone: compared with values and not with a subquery, which PostgreSQL does
    not look up in an index."""
    beyond, bounds = "", tuple[object, ...]()
    if after is not None:
        row = await tx.row("SELECT created, id FROM sessions WHERE id = $1 AND tenant = $2", after, tenant)
        if row is None:
            return ()
        beyond, bounds = " AND (created, id) < ($3, $4)", (row[0], row[1])
    page = f"SELECT id FROM sessions WHERE tenant = $1 AND hidden = 0{beyond} ORDER BY created DESC, id DESC LIMIT $2"
    rows = await tx.rows(
        f"{_SESSION} JOIN ({page}) page ON page.id = s.id ORDER BY s.created DESC, s.id DESC", tenant, limit, *bounds
    )
    return tuple(_session(tx, row) for row in rows)


async def branches_of(tx: Transaction, session: SessionId) -> tuple[Branch, ...]:
    """With what is kept of their KV."""
    return tuple(_holding(row) for row in await tx.rows(_BRANCHES, session))


async def branch_of(tx: Transaction, session: SessionId, name: str, *, lock: bool = False) -> Branch:
    suffix = " FOR UPDATE" if lock else ""
    row = await tx.row(f"{_BRANCH} AND name = $2{suffix}", session, name)
    if row is None:
        raise NotFound(f"the session has no branch {name!r}", field="branch")
    return _branch(row)


async def turn_of(tx: Transaction, turn: TurnId) -> TurnRecord | None:
    row = await tx.row(f"{_TURN} WHERE t.id = $1", turn)
    return None if row is None else await turn_from(tx, row)


async def turn_in(tx: Transaction, tenant: TenantId, session: SessionId, turn: TurnId) -> TurnRecord:
    """Raises `NotFound`, the same for a turn of another session."""
    await session_of(tx, tenant, session)
    found = await turn_of(tx, turn)
    if found is None or found.session != session:
        raise NotFound("the session has no such turn", field="turn")
    return found


async def shown_turn(tx: Transaction, tenant: TenantId, turn: TurnId) -> TurnRecord:
    """By its id alone. Raises `NotFound`, the same for another tenant's and for one that is no response."""
    row = await tx.row(f"{_TURN} WHERE t.id = $1 AND s.tenant = $2 AND t.hidden = 0", turn, tenant)
    if row is None:
        raise NotFound("there is no such turn", field="turn")
    return await turn_from(tx, row)


async def first_waiting(tx: Transaction, session: SessionId, branch: str) -> TurnRecord | None:
    row = await tx.row(
        f"{_TURN} JOIN branches b ON b.session = t.session AND b.name = t.branch WHERE t.session = $1 AND t.branch = $2"
        " AND t.status = 'queued' AND b.live IS NULL ORDER BY t.place LIMIT 1",
        session,
        branch,
    )
    return None if row is None else await turn_from(tx, row)


async def known_turn(tx: Transaction, session: SessionId, key: Key) -> TurnRecord | None:
    """Another try of a request whose turn failed is a turn of its own: nothing was committed."""
    result = await known_result(tx, session, key)
    found = None if result is None else await turn_of(tx, TurnId(result))
    failed = found is not None and found.status is TurnStatus.FAILED
    return None if failed and key.window_s is not None else found


async def known_result(tx: Transaction, scope: str, key: Key) -> str | None:
    """What this key brought before; raises `FailedPrecondition` when it was another request's (invariant 4)."""
    if key.first:
        return None
    row = await tx.row("SELECT digest, result, at, now_ms() FROM keys WHERE scope = $1 AND name = $2", scope, key.name)
    if row is None or (key.window_s is not None and row[3] - row[2] > key.window_s * 1000):
        return None
    if bytes(row[0]) != key.digest:
        told = "the idempotency key was used before, for another request"
        raise FailedPrecondition(told, field="idempotency_key")
    return str(row[1])


async def context_of(
    tx: Transaction, tenant: TenantId, session: SessionId, name: str, instructions: str | None
) -> Context:
    found = await session_of(tx, tenant, session)
    branch = await branch_of(tx, session, name)
    seal = await seal_of(tx, session)
    rows = await tx.rows(
        f"{PATH} SELECT s.chain, s.tokens, s.turn, s.boot, s.total, s.fingerprint"
        " FROM path p JOIN segments s ON s.session = $1"
        " AND s.line = p.line AND s.depth > p.base AND s.depth <= p.upto ORDER BY s.depth",
        session,
        branch.place.line,
        branch.place.depth,
    )
    tokens: list[int] = []
    chain, answers = ROOT_CHAIN, 0
    for depth, row in enumerate(rows, start=1):
        segment = unpack_tokens(seal.open(row[1], "segments.tokens", row[2]))
        if len(segment) == row[4]:
            tokens, chain = [], ROOT_CHAIN  # it is the whole context
        chain = chained(chain, segment)
        if chain != bytes(row[0]):
            raise DataCorrupt(f"the committed tokens of turn {row[2]} are not those that were committed")
        tokens.extend(segment)
        answers = depth if segment else answers
    if len(rows) != branch.place.depth:
        raise DataCorrupt(f"the branch has {branch.place.depth} turns, {len(rows)} of them are here")
    answered, added = [TurnId(row[2]) for row in rows[:answers]], [TurnId(row[2]) for row in rows[answers:]]
    boot, fingerprint = (rows[answers - 1][3], rows[answers - 1][5]) if answers else (None, None)
    before, toolbox = await _told_of(tx, seal, answered[-1]) if answered else (None, NO_TOOLS)
    preamble = await _preamble(tx, seal, answered)
    if before is not None:
        preamble = (Item("system", before), *preamble)
    context = Context(
        found,
        branch,
        tuple(tokens),
        preamble,
        boot and BootId(boot),
        calls=await calls_of(tx, session, branch.place.line, branch.head),
        toolbox=toolbox,
        fingerprint=fingerprint,
        instructions=before,
    )
    if context.anew(instructions):
        return replace(context, items=tuple(item for *_, item in await items_at(tx, session, branch.place)))
    unrendered = [item for turn in added for item in await _items_of(tx, seal, turn)]
    return replace(context, unrendered=tuple(unrendered))


async def calls_of(tx: Transaction, session: SessionId, line: int, turn: TurnId | None) -> tuple[Pending, ...]:
    """The calls of a line's head, in their order. One that was waited for too long is resolved, though nobody has
    written that down."""
    if turn is None:
        return ()
    rows = await tx.rows(
        "SELECT state, payload, result, deadline - now_ms() FROM calls WHERE session = $1 AND line = $2 AND turn = $3"
        " ORDER BY number",
        session,
        line,
        turn,
    )
    if not rows:
        return ()
    seal = await seal_of(tx, session)
    return tuple(_pending(seal, (line, turn, number), *row) for number, row in enumerate(rows))


def _pending(
    seal: Seal, place: tuple[object, ...], told: str, payload: bytes, result: bytes | None, left: int | None
) -> Pending:
    state, call = CallState(told), unpack_call(seal.open(payload, "calls.payload", *place))
    if result is not None:
        return Pending(call, state, seal.open(result, "calls.result", *place).decode())
    if state not in OPEN or (left is not None and left <= 0):
        return Pending(call, CallState.TIMED_OUT, timed_out())
    return Pending(call, state, left_ms=left)


async def items_at(
    tx: Transaction, session: SessionId, place: Place, after: int = 0, limit: int = 1 << 30
) -> tuple[tuple[int, TurnId, Item], ...]:
    seal = await seal_of(tx, session)
    rows = await tx.rows(
        f"{PATH} SELECT i.turn, i.number, i.payload FROM path p JOIN segments s ON s.session = $1 AND s.line = p.line"
        " AND s.depth > p.base AND s.depth <= p.upto JOIN items i ON i.turn = s.turn"
        " ORDER BY s.depth, i.number LIMIT $4 OFFSET $5",
        session,
        place.line,
        place.depth,
        limit,
        after,
    )
    return tuple((number, TurnId(row[0]), item_from(seal, *row)) for number, row in enumerate(rows, start=after + 1))


async def events_of(tx: Transaction, session: SessionId, turn: TurnId, after: int) -> tuple[TurnEvent, ...]:
    seal = await seal_of(tx, session)
    rows = await tx.rows(
        "SELECT seq, first, tokens, text FROM events WHERE turn = $1 AND seq > $2 ORDER BY seq", turn, after
    )
    return tuple(
        TurnEvent(
            seq,
            first,
            tuple(unpack_tokens(seal.open(tokens, "events.tokens", turn, seq))),
            seal.open(text, "events.text", turn, seq).decode(),
        )
        for seq, first, tokens, text in rows
    )


async def progress_of(tx: Transaction, tenant: TenantId, session: SessionId, turn: TurnId, after: int) -> Progress:
    found = await turn_in(tx, tenant, session, turn)
    if found.ending is None:
        return Progress(found, await events_of(tx, session, turn, after))
    row = await tx.row("SELECT ending FROM turns WHERE id = $1", turn)
    assert row is not None
    seal = await seal_of(tx, session)
    return Progress(found, unpack_events(seal.open(row[0], "turns.ending", turn), after))


async def _preamble(tx: Transaction, seal: Seal, turns: Sequence[TurnId]) -> tuple[Item, ...]:
    leading: list[Item] = []
    for turn in turns:
        for item in await _items_of(tx, seal, turn):
            if item.role not in ("system", "developer"):
                return tuple(leading)
            leading.append(item)
    return tuple(leading)


async def _items_of(tx: Transaction, seal: Seal, turn: TurnId) -> list[Item]:
    return [item_from(seal, *row) for row in await tx.rows(_ITEMS, turn)]


async def _told_of(tx: Transaction, seal: Seal, turn: TurnId) -> tuple[str | None, Toolbox]:
    """What a turn was told beside its items: its instructions, and what it may call."""
    row = await tx.row("SELECT asked FROM turns WHERE id = $1", turn)
    if row is None:
        return None, NO_TOOLS
    packed = seal.open(row[0], "turns.asked", turn)
    return unpack_instructions(packed), unpack_toolbox(packed)


def item_from(seal: Seal, turn: str, number: int, payload: bytes) -> Item:
    return unpack_item(seal.open(payload, "items.payload", turn, number))


def _session(tx: Transaction, row: Row) -> Session:
    ident, tenant, model, created, rerender, sealed, hidden, wrapped, *account = row
    about = unpack(tx.seals.of(ident, wrapped).open(sealed, "sessions.about"))
    return Session(
        SessionId(ident),
        TenantId(tenant),
        model,
        created,
        bool(rerender),
        about["metadata"],
        about["vocabulary"],
        unpack_policies(about),
        account_from(account),
        bool(hidden),
    )


def account_from(row: Row) -> Account:
    limits, used, held, version, notices, ttl, expires = row
    return Account(unpack_limits(limits), unpack_amounts(used), unpack_amounts(held), version, notices, ttl, expires)


def _branch(row: Row) -> Branch:
    name, line, depth, head, tokens, epoch, live = row
    return Branch(name, Place(line, depth), head and TurnId(head), tokens, epoch, live and TurnId(live))


def _holding(row: Row) -> Branch:
    *branch, kept, remaining_ms = row
    if kept is None or remaining_ms <= 0:
        return _branch(branch)
    return replace(_branch(branch), holding=unpack_kept(kept, remaining_ms))


async def turn_from(tx: Transaction, row: Row) -> TurnRecord:
    """Raises `DataCorrupt` when it makes no sense to this Baton."""
    payloads = await tx.rows(_ITEMS, row[0])
    try:
        seal = tx.seals.of(row[1], row[17])
        return _turn(row, seal, tuple(item_from(seal, *payload) for payload in payloads))
    except UNREADABLE as error:
        raise DataCorrupt(f"turn {row[0]} cannot be read, it is damaged or of a newer Baton: {error}") from error


def _turn(row: Row, seal: Seal, items: tuple[Item, ...]) -> TurnRecord:
    prepared = None
    if row[11] is not None:
        prompt = unpack_tokens(seal.open(row[11], "turns.prompt", row[0]))
        prepared = Prepared(Place(row[9], row[10]), tuple(prompt), row[12], row[13], row[14])
    return TurnRecord(
        TurnId(row[0]),
        SessionId(row[1]),
        TenantId(row[2]),
        row[3],
        row[4],
        TurnStatus(row[5]),
        row[6],
        GatewayId(row[7]),
        unpack_asked(seal.open(row[8], "turns.asked", row[0]), items),
        prepared,
        row[15] and Halt(row[15]),
        row[16] and unpack_ending(seal.open(row[16], "turns.ending", row[0])),
        unpack_reserve(row[18]),
    )
