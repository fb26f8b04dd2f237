"""Transactions that begin something: a session, a turn, a turn that waited."""

from dataclasses import replace

from runtime.domain.notices import Happening, What
from runtime.domain.sessions import (
    MAIN,
    MAX_QUEUED,
    Branch,
    Halt,
    Key,
    OnConflict,
    Prepared,
    Session,
    TurnRecord,
    TurnStatus,
)
from runtime.domain.spending import Reserve
from runtime.errors import FailedPrecondition, ResourceExhausted
from runtime.ids import SessionId
from runtime.store.accounting import hold, open_account, tell
from runtime.store.calls import expire
from runtime.store.looking import branch_of, calls_of, known_result, known_turn, session_of, turn_of
from runtime.store.packing import pack_about, pack_asked, pack_item, pack_reserve, pack_tokens
from runtime.store.remembering import of_tenant, remember
from runtime.store.sealing import Seal, new_seal, seal_of
from runtime.store.transaction import Transaction


async def create(tx: Transaction, session: Session, key: Key | None) -> Session:
    if key is not None:
        known = await known_result(tx, of_tenant(session.tenant), key)
        if known is not None:
            return await session_of(tx, session.tenant, SessionId(known))
    await insert_session(tx, session)
    await remember(tx, of_tenant(session.tenant), key, session.id)
    return await session_of(tx, session.tenant, session.id)


async def insert_session(tx: Transaction, session: Session) -> None:
    """With its data key, its account and its main branch. Reads nothing."""
    seal = await new_seal(tx, session.id)
    await tx.run(
        "INSERT INTO sessions (id, tenant, model, created, lines, rerender, about, hidden)"
        " VALUES ($1, $2, $3, now_ms(), 1, $4, $5, $6)",
        session.id,
        session.tenant,
        session.model,
        int(session.rerender),
        seal.seal(pack_about(session), "sessions.about"),
        int(session.hidden),
    )
    await open_account(tx, session.id, session.account)
    await tx.run("INSERT INTO lines (session, line, parent, base) VALUES ($1, 0, NULL, 0)", session.id)
    await tx.run(
        "INSERT INTO branches (session, name, line, depth, tokens, epoch) VALUES ($1, $2, 0, 0, 0, 0)",
        session.id,
        MAIN,
    )


async def open_turn(tx: Transaction, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool] | None:
    await session_of(tx, turn.tenant, turn.session)
    branch = await branch_of(tx, turn.session, turn.branch, lock=True)
    if key is not None:
        known = await known_turn(tx, turn.session, key)
        if known is not None:
            return known, False
        await _supersede(tx, turn.session, key)
    asked, prepared = turn.asked, turn.prepared
    if asked.head_is_expected and asked.expected_head != branch.head:
        told = f"the head of branch {branch.name!r} is {branch.head or 'its beginning'}, not what was expected"
        raise FailedPrecondition(told, field="expected_head")
    waiting = await tx.row(
        "SELECT COUNT(*), MIN(place), MAX(place) FROM turns WHERE session = $1 AND branch = $2 AND status = 'queued'",
        turn.session,
        branch.name,
    )
    assert waiting is not None
    if branch.live is not None or waiting[0]:
        place = await _queue_place(tx, turn, branch, *waiting)
        opened = replace(turn, status=TurnStatus.QUEUED, prepared=None, epoch=0, reserve=Reserve())
    elif prepared is None or not await _is_ready(tx, prepared, branch, turn.session):
        return None
    else:
        place = 0
        asked = prepared.asked or asked
        opened = replace(turn, status=TurnStatus.RUNNING, epoch=branch.epoch + 1, asked=asked)
        await _occupy(tx, opened)
        opened = replace(opened, reserve=await hold(tx, opened, branch.head, What.OPENED))
    await insert_turn(tx, opened, place)
    await remember(tx, turn.session, key, turn.id)
    if opened.status is TurnStatus.QUEUED:
        await tell(tx, turn.session, Happening(What.OPENED, turn.branch, turn.id, opened.status))
    return opened, True


async def _supersede(tx: Transaction, session: SessionId, key: Key) -> None:
    """A try that failed is no response any more: there is another."""
    failed = await known_result(tx, session, key)
    await tx.run("UPDATE turns SET hidden = 1 WHERE id = $1 AND session = $2", failed, session)


async def _queue_place(
    tx: Transaction, turn: TurnRecord, branch: Branch, count: int, first: int | None, last: int | None
) -> int:
    """Where it waits; stops the running turn where its policy says so."""
    policy = turn.asked.on_conflict
    if policy in (None, OnConflict.REJECT):
        told = f"branch {branch.name!r} is busy with turn {branch.live or 'that waits'}"
        raise FailedPrecondition(told, field="on_conflict")
    if count >= MAX_QUEUED:
        raise ResourceExhausted(f"{count} turns wait for branch {branch.name!r} already", retry_after_ms=1000)
    if policy is OnConflict.ENQUEUE:
        return 0 if last is None else last + 1
    halt = Halt.INTERRUPT if policy is OnConflict.INTERRUPT else Halt.DISCARD
    await tx.run("UPDATE turns SET halt = $1 WHERE id = $2 AND halt IS NULL", halt.value, branch.live)
    return 0 if first is None else first - 1


async def begin_turn(tx: Transaction, turn: TurnRecord) -> TurnRecord | None:
    branch = await branch_of(tx, turn.session, turn.branch, lock=True)
    first = await tx.row(
        "SELECT id FROM turns WHERE session = $1 AND branch = $2 AND status = 'queued' ORDER BY place LIMIT 1",
        turn.session,
        branch.name,
    )
    prepared = turn.prepared
    assert prepared is not None, "a turn is prepared before it begins"
    if branch.live is not None or first is None or first[0] != turn.id:
        return None
    if not await _is_ready(tx, prepared, branch, turn.session):
        return None
    asked = prepared.asked or turn.asked
    begun = replace(turn, status=TurnStatus.RUNNING, epoch=branch.epoch + 1, asked=asked)
    seal = await seal_of(tx, turn.session)
    changed = await tx.run(
        "UPDATE turns SET status = 'running', epoch = $2, owner = $3, line = $4, depth = $5, prompt = $6, context = $7,"
        " max_tokens = $8, drift = $9, asked = $10 WHERE id = $1 AND status = 'queued' AND owner = $3",
        turn.id,
        begun.epoch,
        turn.owner,
        prepared.base.line,
        prepared.base.depth,
        seal.seal(pack_tokens(prepared.prompt), "turns.prompt", turn.id),
        prepared.context,
        prepared.max_tokens,
        prepared.drift,
        seal.seal(pack_asked(asked), "turns.asked", turn.id),
    )
    if not changed:
        return None  # dropped meanwhile, or taken over
    # With what it says of the calls before it.
    await tx.run("DELETE FROM items WHERE turn = $1", turn.id)
    await _say(tx, seal, begun)
    await _occupy(tx, begun)
    reserve = await hold(tx, begun, branch.head, What.BEGUN)
    await tx.run("UPDATE turns SET held = $2 WHERE id = $1", turn.id, pack_reserve(reserve))
    return await turn_of(tx, turn.id)


async def _occupy(tx: Transaction, turn: TurnRecord) -> None:
    await tx.run(
        "UPDATE branches SET live = $3, epoch = $4 WHERE session = $1 AND name = $2",
        turn.session,
        turn.branch,
        turn.id,
        turn.epoch,
    )


async def insert_turn(tx: Transaction, turn: TurnRecord, place: int) -> None:
    """With its items."""
    prepared = turn.prepared
    base = prepared and prepared.base
    seal = await seal_of(tx, turn.session)
    await tx.run(
        "INSERT INTO turns (id, session, branch, status, epoch, owner, place, asked, line, depth, prompt, context,"
        " max_tokens, drift, held) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        turn.id,
        turn.session,
        turn.branch,
        turn.status.value,
        turn.epoch,
        turn.owner,
        place,
        seal.seal(pack_asked(turn.asked), "turns.asked", turn.id),
        base and base.line,
        base and base.depth,
        prepared and seal.seal(pack_tokens(prepared.prompt), "turns.prompt", turn.id),
        prepared and prepared.context,
        prepared and prepared.max_tokens,
        prepared and prepared.drift,
        pack_reserve(turn.reserve) if turn.status is TurnStatus.RUNNING else None,
    )
    await _say(tx, seal, turn)


async def _is_ready(tx: Transaction, prepared: Prepared, branch: Branch, session: SessionId) -> bool:
    """Whether it was prepared on what the branch is now. Calls are resolved once, so it is enough to count them."""
    if prepared.base != branch.place:
        return False
    line, head = branch.place.line, branch.head
    if not await calls_of(tx, session, line, head):
        return True
    await expire(tx, session, branch)
    return prepared.resolved == sum(not pending.open for pending in await calls_of(tx, session, line, head))


async def _say(tx: Transaction, seal: Seal, turn: TurnRecord) -> None:
    rows: list[tuple[object, ...]] = [
        (turn.id, number, turn.session, seal.seal(pack_item(item), "items.payload", turn.id, number))
        for number, item in enumerate(turn.asked.items)
    ]
    await tx.run_many("INSERT INTO items (turn, number, session, payload) VALUES ($1, $2, $3, $4)", rows)
