"""Transactions of a turn that is under way: what it gave out, its end, and that somebody wants it stopped.

Each write locks the branch and checks that its epoch is still this owner's (invariant 1).
"""

from collections.abc import Sequence

from runtime.domain.notices import Happening, What
from runtime.domain.sessions import Ending, Halt, Item, Place, TurnEvent, TurnRecord, TurnStatus
from runtime.domain.spending import Amounts
from runtime.errors import Internal, NotFound, StaleAttempt
from runtime.ids import SessionId, TenantId, TurnId
from runtime.store.accounting import hold_more, settle, tell
from runtime.store.calls import add_calls
from runtime.store.keeping import hold_kept
from runtime.store.looking import turn_in
from runtime.store.packing import ROOT_CHAIN, chained, pack_ending, pack_item, pack_tokens
from runtime.store.sealing import Seal, seal_of
from runtime.store.transaction import Transaction


async def append_event(tx: Transaction, turn: TurnRecord, event: TurnEvent) -> None:
    seal = await _fence(tx, turn)
    tokens, text = pack_tokens(event.tokens), event.text.encode()
    added = await tx.run(
        "INSERT INTO events (turn, seq, session, first, tokens, text) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (turn, seq) DO NOTHING",
        turn.id,
        event.seq,
        turn.session,
        event.index,
        seal.seal(tokens, "events.tokens", turn.id, event.seq),
        seal.seal(text, "events.text", turn.id, event.seq),
    )
    if not added:
        row = await tx.row("SELECT first, tokens, text FROM events WHERE turn = $1 AND seq = $2", turn.id, event.seq)
        assert row is not None
        had = seal.open(row[1], "events.tokens", turn.id, event.seq)
        said = seal.open(row[2], "events.text", turn.id, event.seq)
        if (row[0], had, said) != (event.index, tokens, text):
            raise Internal(f"event {event.seq} of turn {turn.id} was stored before with another content")


async def extend_turn(tx: Transaction, turn: TurnRecord, want: Amounts, took: Amounts) -> Amounts:
    await _fence(tx, turn)
    return await hold_more(tx, turn, want, took)


async def finish_turn(
    tx: Transaction, turn: TurnRecord, ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]
) -> None:
    packed = pack_ending(ending, tokens, events)
    if await _finished_before(tx, turn, packed):
        return
    if ending.status is TurnStatus.COMMITTED:
        await _commit(tx, turn, ending, tokens, "".join(event.text for event in events))
    await settle(tx, turn, ending)
    await tx.run("DELETE FROM events WHERE turn = $1", turn.id)
    await tx.run(
        "UPDATE turns SET status = $2, ending = $3, prompt = NULL WHERE id = $1",
        turn.id,
        ending.status.value,
        (await seal_of(tx, turn.session)).seal(packed, "turns.ending", turn.id),
    )
    await hold_kept(tx, turn.id, ending.retained)
    await tx.run("UPDATE branches SET live = NULL WHERE session = $1 AND name = $2", turn.session, turn.branch)


async def _finished_before(tx: Transaction, turn: TurnRecord, packed: bytes) -> bool:
    """Whether this very end was stored already and only its acknowledgement was lost."""
    try:
        await _fence(tx, turn)
    except StaleAttempt:
        row = await tx.row("SELECT epoch, ending FROM turns WHERE id = $1", turn.id)
        if row is not None and row[0] == turn.epoch and row[1] is not None:
            seal = await seal_of(tx, turn.session)
            if seal.open(row[1], "turns.ending", turn.id) == packed:
                return True
        raise
    return False


async def _commit(tx: Transaction, turn: TurnRecord, ending: Ending, tokens: Sequence[int], text: str) -> None:
    prepared = turn.prepared
    assert prepared is not None, "a turn is prepared before it runs"
    seal = await seal_of(tx, turn.session)
    place = Place(prepared.base.line, prepared.base.depth + 1)
    segment = (*prepared.prompt, *tokens[: ending.kept])
    # What is rendered anew is the whole context, which nothing precedes.
    before = await chain_at(tx, turn.session, prepared.base) if prepared.context else ROOT_CHAIN
    total = prepared.context + len(segment)
    await tx.run(
        "INSERT INTO segments (session, line, depth, turn, total, chain, boot, tokens, fingerprint)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        turn.session,
        place.line,
        place.depth,
        turn.id,
        total,
        chained(before, segment),
        ending.boot,
        seal.seal(pack_tokens(segment), "segments.tokens", turn.id),
        ending.fingerprint,
    )
    number = len(turn.asked.items)
    said = Item("assistant", ending.said if ending.calls else text, ending.calls)
    await tx.run(
        "INSERT INTO items (turn, number, session, payload) VALUES ($1, $2, $3, $4)",
        turn.id,
        number,
        turn.session,
        seal.seal(pack_item(said), "items.payload", turn.id, number),
    )
    if ending.calls:
        await add_calls(tx, turn, place.line, ending.calls)
    await tx.run(
        "UPDATE branches SET depth = $3, head = $4, tokens = $5 WHERE session = $1 AND name = $2",
        turn.session,
        turn.branch,
        place.depth,
        turn.id,
        total,
    )


async def chain_at(tx: Transaction, session: SessionId, place: Place) -> bytes:
    """The chain hash of all committed tokens up to a place."""
    line: int | None = place.line
    while line is not None:
        row = await tx.row(
            "SELECT chain FROM segments WHERE session = $1 AND line = $2 AND depth = $3", session, line, place.depth
        )
        if row is not None:
            return bytes(row[0])
        parent = await tx.row("SELECT parent FROM lines WHERE session = $1 AND line = $2", session, line)
        assert parent is not None, "every line has its row"
        line = parent[0]
    return ROOT_CHAIN


async def drop_turn(tx: Transaction, turn: TurnRecord, ending: Ending) -> bool:
    try:
        seal = await seal_of(tx, turn.session)
    except NotFound:
        return False
    packed = seal.seal(pack_ending(ending, (), ()), "turns.ending", turn.id)
    changed = await tx.run(
        "UPDATE turns SET status = $2, ending = $3 WHERE id = $1 AND status = 'queued'",
        turn.id,
        ending.status.value,
        packed,
    )
    if changed:
        await tell(tx, turn.session, Happening(What.ENDED, turn.branch, turn.id, ending.status))
    return bool(changed)


async def halt_turn(tx: Transaction, tenant: TenantId, session: SessionId, turn: TurnId, halt: Halt) -> TurnRecord:
    await turn_in(tx, tenant, session, turn)
    await tx.run(
        "UPDATE turns SET halt = $2 WHERE id = $1 AND halt IS NULL AND status IN ('queued', 'running')",
        turn,
        halt.value,
    )
    return await turn_in(tx, tenant, session, turn)


async def _fence(tx: Transaction, turn: TurnRecord) -> Seal:
    """With the session's seal, which costs no statement of its own this way."""
    row = await tx.row(
        "SELECT live, epoch, (SELECT wrapped FROM session_keys WHERE session = $1) FROM branches"
        " WHERE session = $1 AND name = $2 FOR UPDATE",
        turn.session,
        turn.branch,
    )
    if row is None or row[2] is None or (row[0], row[1]) != (turn.id, turn.epoch):
        raise StaleAttempt(f"turn {turn.id} is not under epoch {turn.epoch} any more", field="turn")
    return tx.seals.of(turn.session, row[2])
