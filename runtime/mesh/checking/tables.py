"""What of a session store's tables is watched while it is judged."""

from collections.abc import Callable, Mapping

from runtime.store.transaction import Transaction

Violated = Callable[[int, str], None]
"""Told of the number of an invariant that does not hold, and why."""
Table = Mapping[tuple[object, ...], tuple[object, ...]]

WATCHED = {
    "branches": (2, "SELECT session, name, line, depth, head, tokens, epoch, live FROM branches"),
    "turns": (1, "SELECT id, session, branch, status, epoch, owner, ending, held, kept, kept_until FROM turns"),
    "segments": (3, "SELECT session, line, depth, turn, total, chain, tokens FROM segments"),
    "calls": (4, "SELECT session, line, turn, number, state, result FROM calls"),
    "accounts": (1, "SELECT session, limits, used, held FROM accounts"),
}
"""Of each table how many columns are its key, and the columns."""
LINE, DEPTH, HEAD, TOKENS, EPOCH, LIVE = range(6)
SESSION, BRANCH, STATUS, TURN_EPOCH, OWNER, ENDING, HELD, KEPT, KEPT_UNTIL = range(9)


async def read_table(tx: Transaction, name: str) -> Table:
    keyed, sql = WATCHED[name]
    return {tuple(row[:keyed]): tuple(row[keyed:]) for row in await tx.rows(sql)}
