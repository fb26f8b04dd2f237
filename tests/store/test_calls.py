"""Calls of a branch's head on both stores: each resolves once, in any order, and nothing is run while one is open."""

import asyncio
from dataclasses import replace

import pytest

from runtime.domain.sessions import MAIN, Item, Key, Place, StopReason
from runtime.domain.tools import (
    CallState,
    Tool,
    Toolbox,
    ToolCall,
    ToolResult,
    Verdict,
    denied,
    timed_out,
)
from runtime.errors import BatonError, FailedPrecondition, InvalidArgument, NotFound
from runtime.ids import SessionId, TurnId
from runtime.session_store import SessionStore
from runtime.store.bundle import read_bundle, write_bundle
from runtime.store.packing import pack_call
from runtime.store.transaction import Database
from tests.store.conftest import Execute, Rows
from tests.store.talking import COMMITTED, EVENTS, OTHER, OUTPUT, TENANT, enqueued, key, opened, record, session

CALLS = tuple(ToolCall(f"call-{number}", "weather", f'{{"n": {number}}}') for number in range(3))
TOOLS = Toolbox((Tool("weather", "Ünï"), Tool("pay", approval=True)))
CALLED = replace(COMMITTED, stop=StopReason.TOOL_CALLS, calls=CALLS, said="Let me look.")
AFTER = Place(0, 1)


async def called(store: SessionStore, toolbox: Toolbox = TOOLS, calls: tuple[ToolCall, ...] = CALLS) -> SessionId:
    """A session whose head made calls."""
    sess = await session(store)
    turn = await opened(store, record(sess, toolbox=toolbox))
    await store.finish(turn, replace(CALLED, calls=calls), OUTPUT, EVENTS)
    return sess


async def states(store: SessionStore, sess: SessionId, branch: str = MAIN) -> list[CallState]:
    return [pending.state for pending in await store.calls(TENANT, sess, branch)]


def output(number: int, text: str = "Sunny.") -> ToolResult:
    return ToolResult(f"call-{number}", text)


async def test_a_commit_leaves_its_calls_pending_and_says_them(store: SessionStore) -> None:
    sess = await called(store)
    context = await store.context(TENANT, sess, MAIN)
    assert [(pending.call, pending.state, pending.left_ms) for pending in context.calls] == [
        (call, CallState.PENDING, None) for call in CALLS
    ]
    assert context.toolbox == TOOLS
    items = await store.items(TENANT, sess, MAIN, 0, 10)
    assert items[-1][2] == Item("assistant", "Let me look.", CALLS)
    ending = (await store.progress(TENANT, sess, TurnId("turn-1"), 0)).turn.ending
    assert ending == CALLED
    turn = (await store.progress(TENANT, sess, TurnId("turn-1"), 0)).turn
    assert turn.asked.toolbox == TOOLS


async def test_calls_resolve_in_parallel_and_out_of_order_each_exactly_once(store: SessionStore) -> None:
    sess = await called(store)

    async def one(number: int, text: str) -> str | BatonError:
        try:
            await store.submit(TENANT, sess, MAIN, (output(number, text),), None)
        except BatonError as error:
            return error
        return text

    said = await asyncio.gather(*(one(number, f"{number} by {who}") for who in range(4) for number in (2, 0, 1)))
    won = {each for each in said if isinstance(each, str)}
    assert len(won) == 3
    lost = [each for each in said if isinstance(each, BatonError)]
    assert {(type(error), error.field) for error in lost} == {(FailedPrecondition, "results[0].call")}
    assert all("has its result already" in error.message for error in lost)
    pending = await store.calls(TENANT, sess, MAIN)
    assert {each.result for each in pending} == won
    assert {each.state for each in pending} == {CallState.ANSWERED}


async def test_a_request_resolves_all_of_its_calls_or_none(store: SessionStore) -> None:
    sess = await called(store)
    await store.submit(TENANT, sess, MAIN, (output(1),), None)
    with pytest.raises(FailedPrecondition) as refused:
        await store.submit(TENANT, sess, MAIN, (output(0), output(1, "Again.")), None)
    assert refused.value.field == "results[1].call"
    assert await states(store, sess) == [CallState.PENDING, CallState.ANSWERED, CallState.PENDING]
    for tenant, what in ((OTHER, output(0)), (TENANT, output(7))):
        with pytest.raises(NotFound):
            await store.submit(tenant, sess, MAIN, (what,), None)


async def test_a_lost_acknowledgement_is_made_good_under_the_same_key(store: SessionStore) -> None:
    sess = await called(store)
    first = await store.submit(TENANT, sess, MAIN, (output(0),), key())
    assert await store.submit(TENANT, sess, MAIN, (output(0),), key()) == first
    assert first[0] == "turn-1"
    with pytest.raises(FailedPrecondition) as refused:
        await store.submit(TENANT, sess, MAIN, (output(0),), key(request=b"two"))
    assert refused.value.field == "idempotency_key"


async def test_a_turn_is_opened_only_on_the_calls_as_they_are(store: SessionStore) -> None:
    """Invariant 9: what was prepared while a call was open is prepared anew once it is not."""
    sess = await called(store)
    following = record(sess, "turn-2", AFTER, context=5)
    assert following.prepared is not None
    await store.submit(TENANT, sess, MAIN, (output(0),), None)
    assert await store.open(following, None) is None
    said = (Item("tool", "Sunny.", call="call-0", name="weather"), *following.asked.items)
    asked = replace(following.asked, items=said)
    ready = replace(following, prepared=replace(following.prepared, resolved=1, asked=asked))
    turn = await opened(store, ready)
    assert turn.asked.items == said
    with pytest.raises(FailedPrecondition, match="busy"):
        await store.submit(TENANT, sess, MAIN, (output(1),), None)
    await store.finish(turn, COMMITTED, OUTPUT, EVENTS)
    assert [item for *_, item in await store.items(TENANT, sess, MAIN, 2, 10)][:2] == [*said]
    assert await store.calls(TENANT, sess, MAIN) == ()
    with pytest.raises(FailedPrecondition, match="too late"):
        await store.submit(TENANT, sess, MAIN, (output(1),), None)


async def test_a_turn_that_waited_says_what_became_of_the_calls(store: SessionStore) -> None:
    sess = await session(store)
    first = await opened(store, record(sess, toolbox=TOOLS))
    waiting = record(sess, "turn-2")
    found = await store.open(enqueued(waiting), None)
    assert found is not None
    await store.finish(first, CALLED, OUTPUT, EVENTS)
    said = (Item("tool", "given up", call="call-0", name="weather"), *waiting.asked.items)
    prepared = record(sess, "turn-2", AFTER, context=5).prepared
    assert prepared is not None
    begun = await store.begin(replace(found[0], prepared=replace(prepared, asked=replace(found[0].asked, items=said))))
    assert begun is not None
    assert begun.asked.items == said
    await store.finish(begun, COMMITTED, OUTPUT, EVENTS)
    assert [item for *_, item in await store.items(TENANT, sess, MAIN, 2, 10)][:2] == [*said]


async def test_who_is_waited_for_too_long_comes_too_late(store: SessionStore, execute: Execute) -> None:
    sess = await called(store, replace(TOOLS, wait_ms=60_000))
    pending = await store.calls(TENANT, sess, MAIN)
    assert all(each.left_ms is not None and 0 < each.left_ms <= 60_000 for each in pending)
    await store.submit(TENANT, sess, MAIN, (output(0),), None)
    await execute("UPDATE calls SET deadline = deadline - 61000")
    assert await states(store, sess) == [CallState.ANSWERED, CallState.TIMED_OUT, CallState.TIMED_OUT]
    with pytest.raises(FailedPrecondition, match="waited for too long"):
        await store.submit(TENANT, sess, MAIN, (output(1),), None)
    context = await store.context(TENANT, sess, MAIN)
    assert [pending.result for pending in context.calls] == ["Sunny.", timed_out(), timed_out()]
    following = record(sess, "turn-2", AFTER, context=5)
    assert following.prepared is not None
    await opened(store, replace(following, prepared=replace(following.prepared, resolved=3)))
    # A clock that goes back wakes nothing that was given up.
    await execute("UPDATE calls SET deadline = deadline + 999000")
    assert await states(store, sess) == [CallState.ANSWERED, CallState.TIMED_OUT, CallState.TIMED_OUT]


async def test_somebody_has_to_allow_a_call_first(store: SessionStore, execute: Execute) -> None:
    calls = (ToolCall("call-0", "pay", "{}"), ToolCall("call-1", "pay", "{}"), ToolCall("call-2", "pay", "{}"))
    sess = await called(store, replace(TOOLS, wait_ms=10_000, approval_ms=99_000), calls)
    assert await states(store, sess) == [CallState.APPROVAL] * 3
    with pytest.raises(FailedPrecondition, match="has to be approved"):
        await store.submit(TENANT, sess, MAIN, (output(0),), None)
    approve, deny = Verdict.APPROVE, Verdict.DENY
    said = (ToolResult("call-0", verdict=approve), ToolResult("call-1", "Too much.", deny))
    _, pending = await store.submit(TENANT, sess, MAIN, said, None)
    assert [each.state for each in pending] == [CallState.PENDING, CallState.DENIED, CallState.APPROVAL]
    assert pending[1].result == denied("Too much.")
    assert pending[0].left_ms is not None
    assert pending[2].left_ms is not None
    assert pending[0].left_ms <= 10_000 < pending[2].left_ms
    with pytest.raises(FailedPrecondition, match="does not wait for an approval"):
        await store.submit(TENANT, sess, MAIN, (ToolResult("call-0", verdict=approve),), None)
    with pytest.raises(FailedPrecondition, match="was denied already"):
        await store.submit(TENANT, sess, MAIN, (ToolResult("call-1", verdict=approve),), None)
    await store.submit(TENANT, sess, MAIN, (output(0),), None)
    await execute("UPDATE calls SET deadline = deadline - 100000")
    assert await states(store, sess) == [CallState.ANSWERED, CallState.DENIED, CallState.TIMED_OUT]


async def test_a_fork_resolves_its_calls_for_itself_and_a_rollback_finds_what_was_resolved(
    store: SessionStore, rows: Rows
) -> None:
    """Invariant 10."""
    sess = await called(store)
    await store.submit(TENANT, sess, MAIN, (output(0, "Before."),), None)
    await store.fork(TENANT, sess, MAIN, None, "other", None)
    await store.submit(TENANT, sess, "other", (output(1, "There."),), None)
    assert await states(store, sess) == [CallState.ANSWERED, CallState.PENDING, CallState.PENDING]
    await store.submit(TENANT, sess, MAIN, (output(1, "Here."), output(2)), None)
    assert [each.result for each in await store.calls(TENANT, sess, "other")] == ["Before.", "There.", ""]
    following = record(sess, "turn-2", AFTER, context=5)
    assert following.prepared is not None
    turn = await opened(store, replace(following, prepared=replace(following.prepared, resolved=3)))
    await store.finish(turn, COMMITTED, OUTPUT, EVENTS)
    await store.rollback(TENANT, sess, MAIN, TurnId("turn-1"), None)
    assert [each.result for each in await store.calls(TENANT, sess, MAIN)] == ["Before.", "Here.", "Sunny."]
    await store.fork(TENANT, sess, "other", TurnId("turn-1"), "third", None)
    assert [each.result for each in await store.calls(TENANT, sess, "third")] == ["Before.", "There.", ""]
    await store.delete(TENANT, sess)
    assert (await rows())["calls"] == 0


async def test_a_turn_without_calls_takes_no_results(store: SessionStore) -> None:
    sess = await session(store)
    with pytest.raises(NotFound) as refused:
        await store.submit(TENANT, sess, MAIN, (output(0),), Key("key", b"one"))
    assert refused.value.field == "results[0].call"


async def test_a_session_that_goes_to_another_store_waits_there_for_the_same_calls(store: SessionStore) -> None:
    sess = await called(store)
    await store.submit(TENANT, sess, MAIN, (output(1, "Ünï."),), None)
    before, data = await store.calls(TENANT, sess, MAIN), await store.read_out(TENANT, sess)
    await store.delete(TENANT, sess)
    bundle = read_bundle(data)
    (calls,) = [rows for rows in bundle.tables if rows.table == "calls"]
    row = [*calls.rows[0]]
    forgeries = ((0, 1), (0, -1), (1, "turn-none"), (2, 7), (3, "call-x"), (4, "done"), (7, b"\x91"), (8, b"a result"))
    forged = [[(*row[:place], value, *row[place + 1 :]), *calls.rows[1:]] for place, value in forgeries]
    another = pack_call(replace(CALLS[0], name="pay"))
    forged += [[*calls.rows[:2]], [(*row[:7], another, row[8]), *calls.rows[1:]]]
    for forgery in forged:
        rows = replace(calls, rows=forgery)
        others = [each for each in bundle.tables if each.table != "calls"]
        with pytest.raises(InvalidArgument) as refused:
            await store.take_in(TENANT, write_bundle(replace(bundle, tables=(*others, rows))), None)
        assert refused.value.field == "bundle"
    await store.take_in(TENANT, data, None)
    assert await store.calls(TENANT, sess, MAIN) == before
    await store.submit(TENANT, sess, MAIN, (output(0), output(2)), None)
    assert set(await states(store, sess)) == {CallState.ANSWERED}


async def test_what_tools_were_given_and_brought_is_in_no_column_as_it_is(store: SessionStore, kept: Database) -> None:
    sess = await called(store, TOOLS, (ToolCall("call-0", "weather", '{"canary": "Qx7canary"}'),))
    await store.submit(TENANT, sess, MAIN, (output(0, "Qx7canary"),), None)
    await store.fork(TENANT, sess, MAIN, None, "other", None)
    rows = await kept.read(lambda tx: tx.rows("SELECT payload, result FROM calls"))
    assert len(rows) == 2
    assert not any(b"Qx7canary" in bytes(value) for row in rows for value in row)
    assert [each.result for each in await store.calls(TENANT, sess, "other")] == ["Qx7canary"]


async def test_what_became_of_calls_on_a_dropped_branch_goes_with_it(store: SessionStore, rows: Rows) -> None:
    sess = await called(store)
    before = await rows()
    await store.fork(TENANT, sess, MAIN, None, "other", None)
    await store.submit(TENANT, sess, "other", (output(0),), None)
    await store.drop_branch(TENANT, sess, "other")
    assert await rows() | {"notices": 0} == before | {"notices": 0}
