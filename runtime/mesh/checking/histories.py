"""Judges what a session store holds in the end: every branch tells what was said and what an unharmed model answers.

Reads any of the databases, so that it judges simulated meshes and real ones alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from runtime.domain.sequence import Sampling
from runtime.domain.sessions import Item, Place, StopReason, TurnRecord, TurnStatus
from runtime.domain.settling import TOOL
from runtime.domain.spending import NOTHING, Amounts
from runtime.domain.tools import Toolbox
from runtime.errors import DataCorrupt
from runtime.ids import SessionId, TenantId, TurnId
from runtime.mesh.checking.contracts import judge_account, judge_calls
from runtime.mesh.checking.tables import Violated
from runtime.store.content import OF_A_SESSION
from runtime.store.looking import PATH, branches_of, context_of, events_of, progress_of, session_of, turn_of
from runtime.store.transaction import Transaction

_CUT = frozenset({StopReason.INTERRUPTED, StopReason.BUDGET})


class Oracle(Protocol):
    """What a model and its tokenizer do when nothing goes wrong."""

    def prompt(self, past: Sequence[Item], items: Sequence[Item], toolbox: Toolbox, *, rerender: bool) -> list[int]:
        """What a turn that says `items` after `past`, and may call these tools, adds to its context; all of it with
        `rerender`."""

    def answer(self, context: Sequence[int], sampling: Sampling) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class _Told:
    """A turn with its whole output."""

    record: TurnRecord
    tokens: tuple[int, ...]
    text: str
    base: Place
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Past:
    tokens: tuple[int, ...] = ()
    items: tuple[Item, ...] = ()
    turns: tuple[TurnId, ...] = ()


class Histories:
    """Of one store, at a moment when nothing runs."""

    def __init__(
        self, tx: Transaction, oracle: Oracle, booked: Mapping[SessionId, Amounts], violated: Violated
    ) -> None:
        """`booked` is what sessions have spent on KV that was kept between their turns."""
        self._tx = tx
        self._oracle = oracle
        self._booked = booked
        self._violated = violated
        self._said: dict[tuple[SessionId, str], TurnId] = {}
        self._pasts: dict[tuple[SessionId, Place], _Past] = {}

    async def judge(self) -> None:
        sessions = await self._tx.rows("SELECT id, tenant FROM sessions")
        for ident, tenant in sessions:
            await self._judge_session(TenantId(tenant), SessionId(ident))
        await self._judge_forgotten({row[0] for row in sessions})

    async def _judge_session(self, tenant: TenantId, session: SessionId) -> None:
        rerender = (await session_of(self._tx, tenant, session)).rerender
        for ident, *_ in await self._tx.rows("SELECT id FROM turns WHERE session = $1 ORDER BY id", session):
            told = await self._told(TurnId(ident))
            if told is None:
                continue
            self._judge_once(told.record)
            past = await self._past(session, told.base, rerender=rerender)
            if past is not None:
                await self._judge_turn(told, past, rerender=rerender)
                await judge_calls(self._tx, told.record, told.base, past.turns, self._violated)
        await self._judge_branches(tenant, session, rerender=rerender)
        await judge_account(self._tx, tenant, session, self._booked.get(session, NOTHING), self._violated)

    async def _judge_branches(self, tenant: TenantId, session: SessionId, *, rerender: bool) -> None:
        for branch in await branches_of(self._tx, session):
            if branch.live is not None:
                self._violated(17, f"branch {branch.name} still has {branch.live} running")
            try:
                context = await context_of(self._tx, tenant, session, branch.name, None)
            except DataCorrupt as error:
                self._violated(5, error.message)
                continue
            if branch.tokens != len(context.tokens):
                self._violated(3, f"branch {branch.name} has {len(context.tokens)} tokens and says {branch.tokens}")
            past = await self._past(session, branch.place, rerender=rerender)
            if past is not None and past.tokens != context.tokens:
                self._violated(6, f"branch {branch.name} does not stand on what was said and answered")

    async def _told(self, turn: TurnId) -> _Told | None:
        record = await turn_of(self._tx, turn)
        assert record is not None
        row = await self._tx.row("SELECT line, depth, max_tokens FROM turns WHERE id = $1", turn)
        assert row is not None
        if record.ending is None:
            self._violated(17, f"{turn} is still {record.status}")
            return None
        if row[0] is None:
            return None  # it never began
        events = (await progress_of(self._tx, record.tenant, record.session, turn, 0)).events
        if await events_of(self._tx, record.session, turn, 0):
            self._violated(3, f"{turn} has ended and has events that were left behind")
        tokens = tuple(token for event in events for token in event.tokens)
        return _Told(record, tokens, "".join(event.text for event in events), Place(row[0], row[1]), row[2])

    def _judge_once(self, record: TurnRecord) -> None:
        """Who says something once has one turn of it (invariant 4): here nobody says the same twice. What became of
        calls every branch may say."""
        text = "\n".join(item.content for item in record.asked.items if item.role != TOOL)
        if not text:
            return
        other = self._said.setdefault((record.session, text), record.id)
        if other != record.id:
            self._violated(4, f"{other} and {record.id} are of the same request")

    async def _past(self, session: SessionId, base: Place, *, rerender: bool) -> _Past | None:
        """What was committed up to a place; None when that is in disorder."""
        if (session, base) in self._pasts:
            return self._pasts[session, base]
        tokens: list[int] = []
        items: list[Item] = []
        turns = await _path(self._tx, session, base)
        for turn in turns:
            told = await self._told(turn)
            if told is None or told.record.ending is None:
                return None
            asked, ending = told.record.asked, told.record.ending
            prompt = self._oracle.prompt(items, asked.items, asked.toolbox, rerender=rerender)
            segment = [*prompt, *told.tokens[: ending.kept]]
            tokens = segment if rerender else [*tokens, *segment]
            items += [*asked.items, Item("assistant", ending.said if ending.calls else told.text, ending.calls)]
        past = self._pasts[session, base] = _Past(tuple(tokens), tuple(items), tuple(turns))
        return past

    async def _judge_turn(self, told: _Told, past: _Past, *, rerender: bool) -> None:
        """Its context is what was committed and what is new (6), its answer that of an unharmed model (8)."""
        record, ending = told.record, told.record.ending
        assert ending is not None
        prompt = self._oracle.prompt(past.items, record.asked.items, record.asked.toolbox, rerender=rerender)
        context = prompt if rerender else [*past.tokens, *prompt]
        if ending.spent.prompt not in (0, len(context)):
            self._violated(6, f"{record.id} began with {ending.spent.prompt} tokens in place of {len(context)}")
        expected = self._oracle.answer(context, _bounded(record.asked.sampling, told.max_tokens))
        if list(told.tokens) != expected[: len(told.tokens)]:
            self._violated(8, f"the answer of {record.id} is not that of the unharmed run")
        whole = ending.status is TurnStatus.COMMITTED and ending.stop not in _CUT
        if whole and len(told.tokens) != len(expected):
            self._violated(7, f"{record.id} is complete with {len(told.tokens)} of {len(expected)} tokens")
        if ending.spent.cached > ending.spent.prompt or ending.spent.completion > len(told.tokens):
            self._violated(12, f"{record.id} gave {len(told.tokens)} tokens and bills {ending.spent}")
        if ending.status is TurnStatus.COMMITTED:
            await self._judge_whole(told)

    async def _judge_whole(self, told: _Told) -> None:
        """A commit has its tokens, its items and its bill (invariant 3)."""
        ending = told.record.ending
        assert ending is not None
        if ending.spent.completion != len(told.tokens):
            self._violated(12, f"{told.record.id} gave {len(told.tokens)} tokens and bills {ending.spent}")
        rows = await self._tx.rows("SELECT total FROM segments WHERE turn = $1", told.record.id)
        items = await self._tx.rows("SELECT number FROM items WHERE turn = $1", told.record.id)
        if len(rows) != 1 or len(items) != len(told.record.asked.items) + 1:
            self._violated(3, f"{told.record.id} is committed with {len(rows)} segments and {len(items)} items")

    async def _judge_forgotten(self, sessions: set[str]) -> None:
        """Of a session that was deleted nothing is left (invariant 13)."""
        for table in OF_A_SESSION:
            for (session,) in await self._tx.rows(f"SELECT DISTINCT session FROM {table}"):
                if session not in sessions:
                    self._violated(13, f"{table} still holds something of session {session}, which is gone")


async def _path(tx: Transaction, session: SessionId, place: Place) -> list[TurnId]:
    """The committed turns up to a place, the oldest first."""
    rows = await tx.rows(
        f"{PATH} SELECT s.turn FROM path p JOIN segments s ON s.session = $1 AND s.line = p.line AND s.depth > p.base"
        " AND s.depth <= p.upto ORDER BY s.depth",
        session,
        place.line,
        place.depth,
    )
    return [TurnId(row[0]) for row in rows]


def _bounded(sampling: Sampling, max_tokens: int) -> Sampling:
    return replace(sampling, max_tokens=max_tokens)
