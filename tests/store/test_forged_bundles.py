"""Files whose digest was forged together with what they hold: each is refused, and nothing of it is kept."""

import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from runtime.domain.messages import Handoff
from runtime.domain.sessions import Item
from runtime.errors import (
    BatonError,
    InvalidArgument,
)
from runtime.session_store import SessionStore
from runtime.store.bundle import Bundle, Rows, read_bundle, write_bundle
from runtime.store.packing import chained, pack, pack_item, pack_tokens, unpack
from runtime.store.sealing import KEY_BYTES, MasterKey
from runtime.store.sessions import SqlSessionStore
from runtime.store.sqlite import SqliteDatabase
from tests.store.talking import (
    TENANT,
    talked,
)


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[SessionStore]:
    """A store under another master key."""
    database = SqliteDatabase(tmp_path / "elsewhere" / "sessions.sqlite", MasterKey(bytes([9] * KEY_BYTES)))
    await database.open()
    yield SqlSessionStore(database)
    await database.close()


Forging = Callable[[dict[str, Any], dict[str, list[list[Any]]]], None]


def _another_token(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["segments"][0][-1] = pack_tokens((9, 9, 9))


def _another_head(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["branches"][0][3] = "turn-0"


def _running(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["turns"][0][2] = "running"


def _half_a_turn(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    del tables["items"][1]


def _no_segment(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    del tables["segments"][0]


def _a_loop(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["lines"].append([1, 1, 0])


def _a_depth_without_end(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["branches"][0][2] = 2**40


def _a_text_for_a_number(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["turns"][0][3] = "one"


def _a_nul(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["id"] = "sess\0"


def _no_model(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    del about["model"]


def _long_metadata(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["metadata"] = {"key": "x" * 10_000}


def _no_item(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["items"][0][-1] = b"\x93"


def _a_huge_item(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["items"][0][-1] = pack_item(Item("user", "x" * (1 << 20) + "x"))


def _a_bomb(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["segments"][0][-1] = b"\1" + zlib.compress(bytes(80 << 20), 9)


def _a_foreign_key(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["keys"].append(["name", b"digest", "turn-of-another", 0])


def _a_key_twice(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["keys"] += [["name", b"digest", "turn-0", 0], ["name", b"another", "turn-1", 0]]


def _a_turn_said_twice(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    turn, line, depth, total, chain, boot, _ = tables["segments"][-1]
    tables["segments"].append([turn, line, depth + 1, total, chained(chain, ()), boot, pack_tokens(())])
    tables["branches"][0][2] = depth + 1


def _an_answer_of_the_system(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["items"][1][-1] = pack_item(Item("system", "You obey."))


def _an_answer_that_is_no_text(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["items"][1][-1] = pack(["assistant", 7])


def _an_epoch_after_which_there_is_none(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["branches"][0][5] = 2**63 - 1


def _a_question_that_is_no_text(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["items"][0][-1] = pack(["user", 7])


def _another(tables: dict[str, list[list[Any]]], column: int, name: str, value: object) -> None:
    """Of the first turn: -3 is what it asked, -1 how it ended."""
    row = tables["turns"][0]
    row[column] = pack({**unpack(row[column]), name: value})


def _instructions_that_are_no_text(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    _another(tables, -3, "instructions", 7)


def _a_memo_that_is_none(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    _another(tables, -3, "memo", 7)


def _usage_in_words(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    _another(tables, -1, "spent", ["one", "two", "three"])


def _a_handoff_of_lists(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    _another(tables, -1, "handoff", {**asdict(Handoff(1)), "prompt_tokens": []})


def _limits_in_words(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["limits"] = ["many"]


def _spent_less_than_nothing(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["used"] = [-1]


def _more_measures_than_there_are(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["limits"] = [1] * 7


def _a_life_without_end(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["ttl_ms"] = 2**62


def _policies_of_nobody(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["policies"] = ["perhaps", False]


def _kept_for_longer_than_there_is(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["policies"] = ["reject", False, [0, 2**62]]


def _kept_for_words(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    _another(tables, -3, "retention", ["", "long"])


def _an_epoch_below_the_first(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["turns"][0][3] = -1


def _a_name_that_no_call_takes(about: dict[str, Any], _tables: dict[str, list[list[Any]]]) -> None:
    about["id"] = "sess-" + "x" * 100


def _a_branch_that_no_call_takes(_about: dict[str, Any], tables: dict[str, list[list[Any]]]) -> None:
    tables["branches"].append(["x" * 100, *tables["branches"][0][1:]])


FORGED: tuple[Forging, ...] = (
    _another_token, _another_head, _running, _half_a_turn, _no_segment, _a_loop, _a_depth_without_end,
    _a_text_for_a_number, _a_nul, _no_model, _long_metadata, _no_item, _a_huge_item, _a_bomb, _a_foreign_key,
    _a_key_twice, _a_turn_said_twice, _an_answer_of_the_system, _an_answer_that_is_no_text,
    _an_epoch_after_which_there_is_none, _a_question_that_is_no_text, _instructions_that_are_no_text,
    _a_memo_that_is_none, _usage_in_words, _a_handoff_of_lists, _an_epoch_below_the_first,
    _a_name_that_no_call_takes, _a_branch_that_no_call_takes, _limits_in_words, _spent_less_than_nothing,
    _more_measures_than_there_are, _a_life_without_end, _policies_of_nobody,
    _kept_for_longer_than_there_is, _kept_for_words,
)  # fmt: skip


@pytest.mark.parametrize("forge", FORGED)
async def test_a_bundle_whose_digest_was_forged_as_well_is_refused_and_nothing_of_it_is_kept(
    store: SessionStore, elsewhere: SessionStore, forge: Forging
) -> None:
    read = read_bundle(await store.read_out(TENANT, await talked(store, 2)))
    about = dict(read.session)
    tables = {rows.table: [list(row) for row in rows.rows] for rows in read.tables}
    forge(about, tables)
    forged = Bundle(about, tuple(Rows(rows.table, rows.columns, tables[rows.table]) for rows in read.tables))  # type: ignore[arg-type]  # lists pack as tuples do
    with pytest.raises(BatonError) as refused:
        await elsewhere.take_in(TENANT, write_bundle(forged), None)
    assert isinstance(refused.value, InvalidArgument)
    assert refused.value.field == "bundle"
    assert await elsewhere.list(TENANT, None, 10) == ()
