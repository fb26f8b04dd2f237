"""What a mesh keeps for sessions that are away: found again after others needed the room, told with its tier and its
time, metered, and refused by a reason (invariant 11)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2, limits_pb2
from batonmesh.v1 import retention_pb2 as kept
from batonmesh.v1 import session_pb2 as pb
from runtime.config import Config, EngineConfig, WorkerConfig
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.retaining import RetentionConfig
from runtime.tiering import KvKeepingConfig
from tests.services.grpc_mesh import told
from tests.services.session_mesh import Seen, User, config, user
from tests.services.test_session_tools import called, saying, submission

PAGE, PAGES = 8, 128
MINUTE = 60_000
BOTH = kept.Retention(after_tools_ms=MINUTE, after_answer_ms=2 * MINUTE)


def tight(state: Path, **retention: float) -> Config:
    """One worker, whose pool has little room."""
    return config(state).model_copy(
        update={
            "engine": EngineConfig(pages=PAGES, page_tokens=PAGE, step_tokens=64),
            "workers": (WorkerConfig(name="decode", role="decode"),),
            "kv": KvKeepingConfig(retention=RetentionConfig(**retention)),
        }
    )


@asynccontextmanager
async def serving(state: Path, **retention: float) -> AsyncIterator[tuple[LocalMesh, User]]:
    async with local_mesh(tight(state, **retention)) as mesh, user(mesh.grpc) as somebody:
        yield mesh, somebody


async def create(somebody: User, **more: object) -> str:
    request = pb.CreateSessionRequest(model="simulated", **more)  # type: ignore[arg-type]
    return (await somebody.stub.CreateSession(request, timeout=20)).id


async def state(somebody: User, session: str) -> pb.SessionState:
    return await somebody.stub.GetSession(pb.GetSessionRequest(session=session), timeout=20)


async def press(somebody: User, times: int = 3) -> None:
    """Others come, one after the other, whose contexts need what is not granted."""
    for number in range(times):
        await somebody.run(await somebody.create(), f"{number}" * (PAGE * PAGES * 5 // 8))


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(200):
        if await true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come true")


def full_pages(seen: Seen) -> int:
    """Tokens of the full pages of a turn's context; its last token has no KV."""
    context = seen.end.usage.prompt_tokens + len(seen.tokens)
    return (context - 1) // PAGE * PAGE


async def test_after_a_tool_pause_under_pressure_the_session_that_asked_prefills_only_what_is_new(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (_, somebody):
        asked, other = await somebody.create(), await somebody.create()
        seen = await called(somebody, asked, retention=BOTH)
        unasked = await called(somebody, other, f'{"x" * 40}{seen.text}<tool_call>\n{{"name": "weather"}}')
        told_of = seen.end.retained
        assert (told_of.pause, told_of.kept_in, told_of.refusal) == (kept.PAUSE_TOOLS, kept.KEPT_IN_POOL, 0)
        assert (told_of.tokens, told_of.keep_ms, told_of.kv_bytes) == (full_pages(seen), MINUTE, full_pages(seen) * 8)
        assert not unasked.end.HasField("retained")
        (branch,) = (await state(somebody, asked)).branches
        assert (branch.retained.tokens, branch.retained.pause) == (told_of.tokens, kept.PAUSE_TOOLS)
        assert MINUTE - 20_000 < branch.retained.keep_ms <= MINUTE
        await press(somebody)
        results = [pb.ToolResult(call=call.id, output="Rain.") for call in seen.end.tool_calls]
        await somebody.stub.SubmitToolResults(submission(asked, *results))
        again = await somebody.run(asked, items=[], sampling=saying("Rain."))
        assert again.end.sources.pool == told_of.tokens
        assert again.end.sources.reason != pb.MISS_REASON_EVICTED
        lost = await somebody.run(other, "And now?", sampling=saying("Nothing."))
        assert lost.end.sources.reason == pb.MISS_REASON_EVICTED
        assert lost.end.sources.pool < full_pages(unasked)


async def test_pauses_of_both_kinds_are_granted_apart_and_a_turn_may_ask_otherwise_than_its_session(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, tools_s=5.0) as (_, somebody):
        session = await create(somebody, policies=pb.TurnPolicies(retention=BOTH))
        assert (await state(somebody, session)).policies.retention == BOTH
        first = await called(somebody, session, "Hello.")
        assert (first.end.retained.pause, first.end.retained.keep_ms) == (kept.PAUSE_ANSWER, 2 * MINUTE)
        second = await called(somebody, session)
        assert (second.end.retained.pause, second.end.retained.keep_ms) == (kept.PAUSE_TOOLS, 5000), "no longer here"
        third = await somebody.run(session, retention=kept.Retention())
        assert not third.end.HasField("retained")
        (branch,) = (await state(somebody, session)).branches
        assert not branch.HasField("retained")


async def test_what_was_kept_is_spent_once_the_session_is_back_and_the_rest_comes_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, somebody):
        session = await somebody.create()
        seen = await somebody.run(session, retention=BOTH)
        before = await state(somebody, session)
        whole = seen.end.retained.kv_bytes * 2 * MINUTE // 1000
        assert before.reserved.kv_byte_seconds == whole
        await asyncio.sleep(0.5)
        again = await somebody.run(session, "And now?")
        ran = seen.end.spent.kv_byte_seconds + again.end.spent.kv_byte_seconds

        async def booked() -> bool:
            return not (await state(somebody, session)).reserved.kv_byte_seconds

        await until(booked)
        spent = (await state(somebody, session)).used.kv_byte_seconds - ran
        assert seen.end.retained.kv_bytes * 0.4 <= spent < whole / 4


async def test_a_grant_ends_in_time_and_what_it_kept_is_as_all_else_then(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, somebody):
        session = await somebody.create()
        seen = await somebody.run(session, retention=kept.Retention(after_answer_ms=300))

        async def booked() -> bool:
            return not (await state(somebody, session)).reserved.kv_byte_seconds

        await until(booked)
        (branch,) = (await state(somebody, session)).branches
        assert not branch.HasField("retained")
        spent = (await state(somebody, session)).used.kv_byte_seconds - seen.end.spent.kv_byte_seconds
        assert 0 < spent <= -(-seen.end.retained.kv_bytes * 300 // 1000)
        await press(somebody)
        assert (await somebody.run(session, "And now?")).end.sources.reason == pb.MISS_REASON_EVICTED


async def test_what_is_not_granted_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with serving(tmp_path, worker_share=0.25, tenant_share=0.125, answer_s=0.0) as (_, somebody):
        tools = kept.Retention(after_tools_ms=MINUTE)
        small, large = await somebody.create(), await somebody.create()
        refused = (await called(somebody, large, retention=tools)).end.retained
        assert (refused.refusal, refused.kept_in, refused.keep_ms, refused.tokens) == (
            kept.RETENTION_REFUSAL_TENANT_QUOTA, kept.KEPT_IN_UNSPECIFIED, 0, 0,
        )  # fmt: skip
        assert not (await state(somebody, large)).reserved.kv_byte_seconds
        answered = await somebody.run(small, retention=kept.Retention(after_answer_ms=MINUTE))
        assert answered.end.retained.refusal == kept.RETENTION_REFUSAL_NOT_OFFERED


async def test_a_budget_shortens_what_is_kept_and_then_refuses_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, somebody):
        session = await create(somebody, limits=limits_pb2.Limits(kv_byte_seconds=30_000))
        seen = await somebody.run(session, retention=BOTH)
        assert 0 < seen.end.retained.keep_ms < 2 * MINUTE
        now = await state(somebody, session)
        assert now.used.kv_byte_seconds + now.reserved.kv_byte_seconds <= 30_000


async def test_a_turn_that_is_stopped_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, somebody):
        session = await somebody.create()
        seen = Seen()
        asked = common_pb2.Sampling(max_tokens=900, temperature=0)

        async def begun() -> bool:
            return len(seen.tokens) > 3

        async with asyncio.TaskGroup() as group:
            group.create_task(somebody.run(session, "Hello.", seen, sampling=asked, retention=BOTH))
            await until(begun)
            assert seen.opened is not None
            stop = pb.CancelTurnRequest(session=session, turn=seen.opened.id, keep=True)
            await somebody.stub.CancelTurn(stop, timeout=20)
        assert seen.end.stop_reason == pb.STOP_REASON_INTERRUPTED
        assert seen.end.retained.refusal == kept.RETENTION_REFUSAL_STOPPED


async def test_more_than_a_week_is_refused_by_the_field(tmp_path: Path) -> None:
    week = 7 * 24 * 3600 * 1000
    async with serving(tmp_path) as (_, somebody):
        session = await somebody.create()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await somebody.run(session, retention=kept.Retention(after_tools_ms=week + 1))
        assert told(refused.value)["baton-error-field"] == "retention.after_tools_ms"
        with pytest.raises(grpc.aio.AioRpcError) as also:
            await create(somebody, policies=pb.TurnPolicies(retention=kept.Retention(after_answer_ms=week + 1)))
        assert told(also.value)["baton-error-field"] == "policies.retention.after_answer_ms"
