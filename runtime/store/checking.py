"""Whether what a bundle holds is a session at all: its shapes, its references, and the chain of what was committed.

A digest tells that a file is as it was written; it does not tell who wrote it. So nothing of it is believed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.domain.retention import NO_RETENTION, Retention
from runtime.domain.sessions import (
    MAX_TTL_MS,
    UNFINISHED,
    Asked,
    Ending,
    Item,
    Progress,
    TurnRecord,
    TurnStatus,
    check_calls,
    check_items,
    check_metadata,
)
from runtime.domain.spending import MAX_LIMIT, Measure
from runtime.domain.tools import OPEN, CallState, ToolCall
from runtime.errors import BatonError, InvalidArgument, TooLarge
from runtime.ids import GatewayId, SessionId, TenantId
from runtime.store.bundle import Bundle, Rows, damaged
from runtime.store.content import BRANCHES, CALLS, ITEMS, LINES, SEGMENTS, TURNS
from runtime.store.foreign import check_payload
from runtime.store.inflating import MAX_INFLATED_BYTES, inflated
from runtime.store.moving import CARRIED, KEYS
from runtime.store.packing import (
    ROOT_CHAIN,
    UNREADABLE,
    chained,
    unpack_asked,
    unpack_call,
    unpack_ending,
    unpack_events,
    unpack_item,
    unpack_policies,
    unpack_tokens,
)
from runtime.wire.session import pack_progress, unpack_branch, unpack_session_id, unpack_turn_id

_MAX_TEXT = 256
_INTEGER, _LONG = 1 << 31, 1 << 63
_SHAPES = {table.name: (table.columns, table.shape) for table in CARRIED} | {"keys": (KEYS, "tbtl")}
_PACKED = frozenset({"asked", "ending", "payload"})
_ABOUT = {"id": "t", "model": "t", "created": "l", "lines": "i", "vocabulary": "t"}
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "t": lambda value: isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value,
    "i": lambda value: type(value) is int and -_INTEGER <= value < _INTEGER,
    "l": lambda value: type(value) is int and -_LONG <= value < _LONG,
    "b": lambda value: isinstance(value, bytes),
}


@dataclass(frozen=True, slots=True)
class _Segment:
    turn: str
    total: int
    chain: bytes


def check_bundle(bundle: Bundle) -> None:
    """Raises `InvalidArgument` naming `bundle`."""
    try:
        _check_about(bundle.session)
        tables = {rows.table: _checked_rows(rows) for rows in bundle.tables}
        if len(tables) != len(bundle.tables) or set(tables) != set(_SHAPES):
            raise damaged("it has not each table once")
        if inflated(bundle, MAX_INFLATED_BYTES) > MAX_INFLATED_BYTES:
            raise damaged(f"its tokens are more than {MAX_INFLATED_BYTES >> 20} MiB")
        turns = _check_turns(tables[TURNS.name], tables[ITEMS.name])
        tree = _Tree(bundle.session, tables, turns)
        tree.check()
        if len({name for name, *_ in tables["keys"]}) < len(tables["keys"]):
            raise damaged("a key is there twice")
        tree.check_calls()
        for _, _, result, _ in tables["keys"]:
            if result not in turns and result not in {row[0] for row in tables[BRANCHES.name]}:
                raise damaged(f"a key stands for {result}, which it does not hold")
    except (*UNREADABLE, TooLarge) as error:
        if isinstance(error, InvalidArgument) and error.field == "bundle":
            raise
        told = error.message if isinstance(error, BatonError) else "a value of it makes no sense"
        raise damaged(told) from error


def _check_account(about: Mapping[str, Any]) -> None:
    """What an older Baton does not tell has no bounds, and nothing was spent of it."""
    policies = unpack_policies(about)
    if not isinstance(policies.cancel_unwatched, bool):
        raise damaged("its session has no proper policies")
    _check_retention(policies.retention)
    limits, used, ttl = about.get("limits", ()), about.get("used", ()), about.get("ttl_ms")
    amounts = [*(each for each in limits if each is not None), *used, *(() if ttl is None else (ttl,))]
    if max(len(limits), len(used)) > len(Measure) or not all(
        type(each) is int and 0 <= each <= MAX_LIMIT for each in amounts
    ):
        raise damaged("its session has no proper limits")
    if ttl is not None and not 1 <= ttl <= MAX_TTL_MS:
        raise damaged("its session has no proper ttl_ms")


def _check_retention(retention: Retention) -> None:
    if not all(type(each) is int for each in retention.each):
        raise damaged("its session, or a turn, asks for no proper retention")
    retention.validate("retention")


def _check_about(about: Mapping[str, Any]) -> None:
    for name, letter in _ABOUT.items():
        if not _FITS[letter](about.get(name)) or (about[name] == "" and name != "vocabulary"):
            raise damaged(f"its session has no proper {name}")
    for name, value in (("rerender", about.get("rerender")), ("hidden", about.get("hidden", False))):
        if not isinstance(value, bool):
            raise damaged(f"its session has no proper {name}")
    unpack_session_id(about["id"])
    metadata = about.get("metadata")
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for pair in metadata.items() for each in pair):
        raise damaged("its session has no proper metadata")
    check_metadata(metadata)
    _check_account(about)


def _checked_rows(rows: Rows) -> list[tuple[Any, ...]]:
    columns, shape = _SHAPES.get(rows.table, ((), ""))
    if rows.columns != columns:
        raise damaged(f"its table {rows.table} has columns that this Baton does not know")
    for row in rows.rows:
        if len(row) != len(columns):
            raise damaged(f"a row of its {rows.table} has not one value a column")
        for column, letter, value in zip(columns, shape, row, strict=True):
            may_be_null = letter.isupper() and value is None
            if not may_be_null and not _FITS[letter.lower()](value):
                raise damaged(f"its {rows.table}.{column} holds what does not belong there")
            if column in _PACKED and value is not None:
                check_payload(value)
    return [*rows.rows]


def _check_turns(turns: list[tuple[Any, ...]], items: list[tuple[Any, ...]]) -> dict[str, Ending]:
    """How each turn ended."""
    said: dict[str, list[Item]] = {}
    for turn, number, payload in items:
        if number != len(said.setdefault(turn, [])):
            raise damaged(f"turn {turn} lacks an item")
        said[turn].append(item := unpack_item(payload))
        _check_kinds(turn, str, item.role, item.content, item.call, item.name)
    ended: dict[str, Ending] = {}
    for row in turns:
        values = dict(zip(TURNS.columns, row, strict=True))
        turn = values["id"]
        status, ending = TurnStatus(values["status"]), unpack_ending(values["ending"])
        spoken = said.pop(turn, [])
        if turn in ended or status in UNFINISHED or ending.status is not status:
            raise damaged(f"turn {turn} is there twice, or has not ended")
        asked = unpack_asked(values["asked"], tuple(spoken))
        # What was only said was never prepared, and has no answer.
        answered = status is TurnStatus.COMMITTED and values["context"] is not None
        _check_spoken(turn, asked.items, spoken[len(asked.items) :], answered=answered)
        _check_told(values, asked, ending)
        if values["prompt"] is not None:
            unpack_tokens(values["prompt"])
        ended[turn] = ending
    if said:
        raise damaged("items are of no turn")
    return ended


def _check_told(values: Mapping[str, Any], asked: Asked, ending: Ending) -> None:
    """What no message can hold could never be told."""
    turn, branch = unpack_turn_id(values["id"]), unpack_branch(values["branch"])
    _check_kinds(turn, bytes, asked.memo)
    _check_kinds(turn, str, asked.instructions or "")
    _check_retention(asked.retention or NO_RETENTION)
    nobody, owner = (SessionId(""), TenantId("")), GatewayId(values["owner"])
    told = TurnRecord(turn, *nobody, branch, "", ending.status, values["epoch"], owner, asked, ending=ending)
    check_calls(Item("assistant", "", ending.calls), "calls")
    pack_progress(Progress(told, unpack_events(values["ending"], 0)), {}, ending.said, after=0)


def _check_kinds(turn: str, kind: type, *values: object) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise damaged(f"turn {turn} has a value that makes no sense")


def _check_spoken(turn: str, items: tuple[Item, ...], answer: list[Item], *, answered: bool) -> None:
    if len(answer) != answered:
        raise damaged(f"turn {turn} lacks an item")
    check_items(items)
    # An answer may be larger than what may be asked.
    for item in answer:
        check_calls(item, "answer")
        if item.role != "assistant":
            raise damaged(f"turn {turn} has an answer that is none")


class _Tree:
    """Lines, segments, branches, and the calls on lines."""

    def __init__(
        self, about: Mapping[str, Any], tables: Mapping[str, list[tuple[Any, ...]]], turns: Mapping[str, Ending]
    ) -> None:
        self._count: int = about["lines"]
        self._rows = tables
        self._turns = turns
        self._lines: dict[int, tuple[int | None, int]] = {}
        self._segments: dict[tuple[int, int], _Segment] = {}

    def check(self) -> None:
        for line, parent, base in sorted(self._rows[LINES.name]):
            root = parent is None and line == base == 0
            if line in self._lines or line >= self._count or not (root or (parent in self._lines and base >= 0)):
                raise damaged(f"line {line} has no proper place")
            self._lines[line] = parent, base
        if 0 not in self._lines:
            raise damaged("it has no first line")
        # Lines after those that they leave, and each in the order in which it was said.
        for row in sorted(self._rows[SEGMENTS.name], key=lambda row: (row[1], row[2])):
            self._add(dict(zip(SEGMENTS.columns, row, strict=True)))
        committed = {turn for turn, ending in self._turns.items() if ending.status is TurnStatus.COMMITTED}
        if {segment.turn for segment in self._segments.values()} != committed or len(self._segments) > len(committed):
            raise damaged("what was committed is not what its turns say")
        for parent, base in self._lines.values():
            self._at(parent, base)
        self._check_branches()

    def _add(self, row: Mapping[str, Any]) -> None:
        line, depth = row["line"], row["depth"]
        if line not in self._lines or depth <= self._lines[line][1] or (line, depth) in self._segments:
            raise damaged(f"turn {row['turn']} has no proper place")
        before = self._at(line, depth - 1)
        tokens = unpack_tokens(row["tokens"])
        total, chain = (
            (0, ROOT_CHAIN) if before is None or row["total"] == len(tokens) else (before.total, before.chain)
        )
        if row["chain"] != chained(chain, tokens) or row["total"] != total + len(tokens):
            raise damaged(f"the tokens of turn {row['turn']} are not those that were committed")
        self._segments[line, depth] = _Segment(row["turn"], row["total"], row["chain"])

    def _at(self, line: int | None, depth: int) -> _Segment | None:
        """The segment at a place; None at the beginning."""
        while depth > 0 and line is not None and line in self._lines:
            parent, base = self._lines[line]
            if depth > base:
                break
            line = parent
        if depth == 0:
            return None
        if line is None or (line, depth) not in self._segments:
            raise damaged(f"nothing is at depth {depth}, where something should be")
        return self._segments[line, depth]

    def _check_branches(self) -> None:
        rows = [dict(zip(BRANCHES.columns, row, strict=True)) for row in self._rows[BRANCHES.name]]
        if not rows or len({row["name"] for row in rows}) < len(rows):
            raise damaged("it has no branch, or one twice")
        for row in rows:
            unpack_branch(row["name"])
            segment = self._at(row["line"], row["depth"])
            head, tokens = (None, 0) if segment is None else (segment.turn, segment.total)
            known = row["line"] in self._lines and row["depth"] >= self._lines[row["line"]][1]
            if not known or (row["head"], row["tokens"], row["live"]) != (head, tokens, None):
                raise damaged(f"branch {row['name']} has no proper head")

    def check_calls(self) -> None:
        """Each is of a committed turn, on a line that has that turn for its head or had, and has a result if it was
        resolved by somebody."""
        places = {segment.turn: place for place, segment in self._segments.items()}
        known: dict[tuple[int, str], int] = {}
        for row in self._rows[CALLS.name]:
            values = dict(zip(CALLS.columns, row, strict=True))
            line, turn, number = values["line"], values["turn"], values["number"]
            if turn not in places or not self._heads(line, *places[turn]):
                raise damaged(f"call {values['id']} is of no turn")
            calls = self._turns[turn].calls
            if number != known.get((line, turn), 0) or number >= len(calls):
                raise damaged(f"call {values['id']} lacks its place")
            _check_call(values, calls[number])
            known[line, turn] = number + 1
        for (_, turn), count in known.items():
            if count != len(self._turns[turn].calls):
                raise damaged(f"turn {turn} lacks a call")

    def _heads(self, line: int, own: int, depth: int) -> bool:
        """Whether the turn at a depth of its `own` line is on a line, or what that begins with."""
        return line == own or (line in self._lines and self._lines[line][1] == depth and self._is_at(line, own, depth))

    def _is_at(self, line: int, own: int, depth: int) -> bool:
        return self._at(line, depth) is self._segments[own, depth]


def _check_call(values: Mapping[str, Any], made: ToolCall) -> None:
    state = CallState(values["state"])
    answered = state not in OPEN and state is not CallState.TIMED_OUT
    if unpack_call(values["payload"]) != made or made.id != values["id"]:
        raise damaged(f"call {values['id']} is not what its turn made")
    if answered != (values["result"] is not None):
        raise damaged(f"call {values['id']} lacks its result")
    if answered:
        values["result"].decode()
