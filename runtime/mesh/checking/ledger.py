"""Judges what a session store commits, transaction by transaction: fences, owners, events and ends, by invariant.

Sees each transaction's effects from inside of it and remembers what was durable, so that it can also say whether what
somebody was shown had been stored before.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar, cast

from runtime.domain.retention import KeptFor
from runtime.domain.sessions import UNFINISHED, Ending, Progress, TurnEvent, TurnStatus
from runtime.domain.spending import NOTHING, Account, Amounts, Measure
from runtime.domain.tools import OPEN
from runtime.ids import GatewayId, SessionId, TurnId
from runtime.mesh.checking.keeping import book_kept, judge_kept, let_go
from runtime.mesh.checking.tables import (
    BRANCH,
    EPOCH,
    HEAD,
    HELD,
    LIVE,
    OWNER,
    SESSION,
    STATUS,
    TURN_EPOCH,
    WATCHED,
    Table,
    Violated,
    read_table,
)
from runtime.store.looking import progress_of, turn_of
from runtime.store.packing import unpack_amounts, unpack_limits, unpack_reserve
from runtime.store.transaction import Row, Transaction, Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """Of a turn, under an epoch."""

    turn: TurnId
    epoch: int


@dataclass(frozen=True, slots=True)
class Beat:
    owner: GatewayId
    lease_s: float


Claim = Write | Beat | KeptFor


@dataclass(frozen=True, slots=True)
class Effects:
    """The tables that a transaction touched, as it left them, and all of the turn that it says it writes."""

    tables: Mapping[str, Table]
    progress: Progress | None


class _Noting:
    """A transaction that notes which tables are changed through it."""

    def __init__(self, tx: Transaction) -> None:
        self.touched: set[str] = set()
        self.seals = tx.seals
        self._tx = tx

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        return await self._tx.rows(sql, *arguments)

    async def row(self, sql: str, *arguments: object) -> Row | None:
        return await self._tx.row(sql, *arguments)

    async def run(self, sql: str, *arguments: object) -> int:
        changed = await self._tx.run(sql, *arguments)
        if changed:
            self.touched.add(_table(sql))
        return changed

    async def run_many(self, sql: str, arguments: list[tuple[object, ...]]) -> None:
        await self._tx.run_many(sql, arguments)
        self.touched.add(_table(sql))


@dataclass(slots=True)
class Ledger:
    violated: Violated
    shown: dict[TurnId, Progress] = field(default_factory=dict)
    booked: dict[SessionId, Amounts] = field(default_factory=dict)
    """What keeping the KV of each session has come to, by what was told of it."""
    _tables: dict[str, Table] = field(default_factory=lambda: {name: {} for name in WATCHED})
    _leases: dict[GatewayId, float] = field(default_factory=dict)

    def watched(self, work: Work[T], claim: Claim | None) -> Work[tuple[T, Effects]]:
        """The same work, with what it did."""

        async def both(tx: Transaction) -> tuple[T, Effects]:
            noting = _Noting(tx)
            result = await work(noting)
            tables = {name: await read_table(tx, name) for name in WATCHED if name in noting.touched}
            progress = await _progress(tx, claim.turn) if isinstance(claim, Write) and noting.touched else None
            return result, Effects(tables, progress)

        return both

    def committed(self, writer: GatewayId, claim: Claim | None, effects: Effects, now_ms: int) -> None:
        """A transaction of `writer` is durable."""
        before, after = self._tables, {**self._tables, **effects.tables}
        if isinstance(claim, Beat):
            self._leases[claim.owner] = now_ms + claim.lease_s * 1000
        elif isinstance(claim, Write) and effects.progress is not None:
            self._judge_write(writer, claim, effects.progress, before["branches"], after)
            judge_kept(effects.progress.turn, after["turns"], now_ms, self.violated)
        if effects.tables:
            told = claim if isinstance(claim, KeptFor) else None
            book_kept(self.booked, told, before["turns"], after["turns"], now_ms)
            self._judge_turns(writer, before["turns"], after, now_ms)
            self._judge_branches(before["branches"], after)
            self._judge_segments(before["segments"], after)
            self._judge_calls(before["calls"], after["calls"])
            self._judge_accounts(before["accounts"], after)
        self._tables = after

    def judge_shown(self, progress: Progress, who: str) -> None:
        """What somebody was shown of a turn is durable (invariant 7)."""
        turn, known = progress.turn.id, self.shown.get(progress.turn.id)
        events = () if known is None else known.events
        for event in progress.events:
            if events[event.seq - 1 : event.seq] != (event,):
                self.violated(7, f"{who} was shown event {event.seq} of {turn}, which is not what is stored")
        ending, row = progress.turn.ending, self._tables["turns"].get((turn,))
        if ending is None or row is None:
            return
        if row[STATUS] != ending.status or (known is not None and not _same_end(ending, known.turn.ending)):
            self.violated(7, f"{who} was told that {turn} is {ending.status}, and stored is {row[STATUS]}")

    def _judge_write(
        self,
        writer: GatewayId,
        claim: Write,
        progress: Progress,
        old: Table,
        after: Mapping[str, Table],
    ) -> None:
        turn = progress.turn
        branch = old.get((turn.session, turn.branch))
        if branch is None or (branch[LIVE], branch[EPOCH]) != (claim.turn, claim.epoch):
            now = "gone" if branch is None else f"{branch[LIVE]} under epoch {branch[EPOCH]}"
            self.violated(1, f"{writer} wrote to {claim.turn} under epoch {claim.epoch}; live is {now}")
        known = self.shown.get(claim.turn)
        if known is not None and progress.events[: len(known.events)] != known.events:
            self.violated(7, f"durable events of {claim.turn} were changed")
        self._judge_events(claim.turn, progress.events)
        if turn.ending is not None:
            self._judge_end(progress, turn.ending, after)
        self.shown[claim.turn] = progress

    def _judge_events(self, turn: TurnId, events: Iterable[TurnEvent]) -> None:
        index = 0
        for seq, event in enumerate(events, start=1):
            if (event.seq, event.index) != (seq, index):
                self.violated(7, f"event {seq} of {turn} is numbered {event.seq} and begins at token {event.index}")
            index += len(event.tokens)

    def _judge_end(self, progress: Progress, ending: Ending, after: Mapping[str, Table]) -> None:
        """A commit is there as a whole, or not at all (invariant 3), and nobody pays for a token twice (12)."""
        turn, given = progress.turn, sum(len(event.tokens) for event in progress.events)
        committed = ending.status is TurnStatus.COMMITTED
        branch = after["branches"].get((turn.session, turn.branch))
        segments = [row for row in after["segments"].values() if row[0] == turn.id]
        if branch is None or branch[LIVE] is not None or (branch[HEAD] == turn.id) != committed:
            self.violated(3, f"{turn.id} has ended as {ending.status}, its branch has {branch}")
        if len(segments) != committed:
            self.violated(3, f"{turn.id} has ended as {ending.status} with {len(segments)} segments")
        if ending.spent.completion > given:
            self.violated(12, f"{turn.id} gave {given} tokens and bills {ending.spent.completion}")

    def _judge_turns(self, writer: GatewayId, old: Table, after: Mapping[str, Table], now_ms: int) -> None:
        turns, branches = after["turns"], after["branches"]
        running = [row[SESSION : BRANCH + 1] for row in turns.values() if row[STATUS] == TurnStatus.RUNNING]
        if len(running) != len(set(running)):
            self.violated(2, "two turns run on one branch")
        for key, row in turns.items():
            was = old.get(key)
            if row[STATUS] == TurnStatus.RUNNING:
                branch = branches.get(row[SESSION : BRANCH + 1])
                if branch is None or (branch[LIVE], branch[EPOCH]) != (key[0], row[TURN_EPOCH]):
                    self.violated(2, f"{key[0]} runs under epoch {row[TURN_EPOCH]}, its branch has {branch}")
            if was is None or was == row:
                continue
            if was[STATUS] not in UNFINISHED and not let_go(was, row):
                self.violated(5, f"{key[0]} was changed after its end")
            elif was[OWNER] != row[OWNER]:
                self._judge_adoption(writer, key[0], was, row, now_ms)

    def _judge_adoption(
        self, writer: GatewayId, turn: object, was: tuple[object, ...], row: tuple[object, ...], now_ms: int
    ) -> None:
        until = self._leases.get(GatewayId(str(was[OWNER])), 0)
        if until > now_ms and row[OWNER] == writer:
            self.violated(
                15, f"{writer} took {turn} over {(until - now_ms) / 1000:.1f} s before its owner's lease ends"
            )
        if was[STATUS] == TurnStatus.RUNNING and row[TURN_EPOCH] == was[TURN_EPOCH]:
            self.violated(1, f"{turn} has another owner under the same epoch")

    def _judge_branches(self, old: Table, after: Mapping[str, Table]) -> None:
        branches = after["branches"]
        fresh = branches.keys() - old.keys()
        for key, row in branches.items():
            was = old.get(key)
            if was is None or was == row:
                continue
            if int(str(row[EPOCH])) < int(str(was[EPOCH])):
                self.violated(1, f"the epoch of branch {key[1]} went from {was[EPOCH]} to {row[EPOCH]}")
            if fresh:
                self.violated(10, f"a fork has changed branch {key[1]}")
        if len(fresh) > 1:
            self.violated(10, f"one transaction made {len(fresh)} branches")

    def _judge_segments(self, old: Table, after: Mapping[str, Table]) -> None:
        sessions = {key[0] for key in after["branches"]}
        for key, was in old.items():
            if key[0] in sessions and after["segments"].get(key) != was:
                self.violated(5, f"the committed tokens of {was[0]} were changed")

    def _judge_calls(self, old: Table, new: Table) -> None:
        """A call is resolved once (invariant 9)."""
        for key, was in old.items():
            row = new.get(key, was)
            if row != was and was[0] not in OPEN:
                self.violated(9, f"call {key[3]} of {key[2]} was {was[0]}, and is {row[0]} again")

    def _judge_accounts(self, old: Table, after: Mapping[str, Table]) -> None:
        """Turns that run never hold more together than the limits leave them (invariant 12)."""
        for key, row in after["accounts"].items():
            if row == old.get(key):
                continue
            limits, used, held = (cast("bytes", each) for each in row)
            account = Account(unpack_limits(limits), unpack_amounts(used), unpack_amounts(held))
            judge_limits(str(key[0]), account, self.violated)
            running = (turn for turn in after["turns"].values() if turn[SESSION] == key[0] and turn[HELD] is not None)
            reserved = sum((unpack_reserve(cast("bytes", turn[HELD])).held for turn in running), NOTHING)
            if reserved != account.held:
                self.violated(12, f"session {key[0]} holds {account.held}, its turns {reserved}")


def judge_limits(session: str, account: Account, violated: Violated) -> None:
    """What is spent and held together is within the limits."""
    for measure, limit, taken in zip(Measure, account.limits.each, (account.used + account.held).each, strict=True):
        if limit is not None and taken > limit:
            violated(12, f"session {session} has {taken} of {limit} {measure} spent or held")


async def _progress(tx: Transaction, turn: TurnId) -> Progress | None:
    record = await turn_of(tx, turn)
    return None if record is None else await progress_of(tx, record.tenant, record.session, turn, 0)


def _same_end(told: Ending, stored: Ending | None) -> bool:
    return stored is not None and (told.status, told.stop, told.kept, told.spent) == (
        stored.status,
        stored.stop,
        stored.kept,
        stored.spent,
    )


@lru_cache(maxsize=256)
def _table(sql: str) -> str:
    found = re.match(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)", sql)
    return "" if found is None else found[1]
