"""Items that are said without an answer: a turn that is committed at once, without tokens. The next renders them."""

from runtime.domain.sessions import Key, TurnRecord
from runtime.errors import FailedPrecondition
from runtime.store.looking import branch_of, calls_of, known_turn, session_of, turn_of
from runtime.store.opening import insert_turn, remember
from runtime.store.packing import ROOT_CHAIN, chained, pack_ending, pack_tokens
from runtime.store.running import chain_at
from runtime.store.sealing import seal_of
from runtime.store.transaction import Transaction


async def add_items(tx: Transaction, turn: TurnRecord, key: Key | None) -> TurnRecord:
    await session_of(tx, turn.tenant, turn.session)
    branch = await branch_of(tx, turn.session, turn.branch, lock=True)
    if key is not None and (known := await known_turn(tx, turn.session, key)) is not None:
        return known
    waits = await tx.row(
        "SELECT 1 FROM turns WHERE session = $1 AND branch = $2 AND status = 'queued' LIMIT 1",
        turn.session,
        branch.name,
    )
    if branch.live is not None or waits is not None:
        told = f"branch {branch.name!r} is busy with turn {branch.live or 'that waits'}"
        raise FailedPrecondition(told, field="on_conflict")
    if await calls_of(tx, turn.session, branch.place.line, branch.head):
        told = f"branch {branch.name!r} called tools: the next turn has to say first what became of that"
        raise FailedPrecondition(told, field="items")
    ending = turn.ending
    assert ending is not None, "it has ended when it begins"
    await insert_turn(tx, turn, 0)
    seal = await seal_of(tx, turn.session)
    sealed = seal.seal(pack_ending(ending, (), ()), "turns.ending", turn.id)
    await tx.run("UPDATE turns SET hidden = 1, ending = $2 WHERE id = $1", turn.id, sealed)
    depth = branch.place.depth + 1
    await tx.run(
        "INSERT INTO segments (session, line, depth, turn, total, chain, boot, tokens)"
        " VALUES ($1, $2, $3, $4, $5, $6, NULL, $7)",
        turn.session,
        branch.place.line,
        depth,
        turn.id,
        branch.tokens,
        chained(await chain_at(tx, turn.session, branch.place) if branch.tokens else ROOT_CHAIN, ()),
        seal.seal(pack_tokens(()), "segments.tokens", turn.id),
    )
    await tx.run(
        "UPDATE branches SET depth = $3, head = $4 WHERE session = $1 AND name = $2",
        turn.session,
        branch.name,
        depth,
        turn.id,
    )
    await remember(tx, turn.session, key, turn.id)
    added = await turn_of(tx, turn.id)
    assert added is not None, "it was just written"
    return added
