"""How a session is kept, by gRPC: changed under a version, watched as it happens, and spending within its limits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2, limits_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.mesh.local import LocalMesh
from tests.services.grpc_mesh import told
from tests.services.session_mesh import NEW, Seen, User, expected, session_mesh

LONG = common_pb2.Sampling(max_tokens=900, temperature=0)
ENDLESS = common_pb2.Sampling(max_tokens=3900, temperature=0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[LocalMesh, User]]:
    async with session_mesh(tmp_path) as both:
        yield both


@pytest.fixture
def user(served: tuple[LocalMesh, User]) -> User:
    return served[1]


async def create(user: User, **more: object) -> str:
    request = pb.CreateSessionRequest(model="simulated", **more)  # type: ignore[arg-type]
    return (await user.stub.CreateSession(request, timeout=20)).id


async def state(user: User, session: str) -> pb.SessionState:
    return await user.stub.GetSession(pb.GetSessionRequest(session=session), timeout=20)


async def update(user: User, session: str, **more: object) -> pb.SessionState:
    request = pb.UpdateSessionRequest(session=session, **more)  # type: ignore[arg-type]
    return await user.stub.UpdateSession(request, timeout=20)


async def test_a_session_is_changed_under_the_version_that_was_seen(user: User) -> None:
    session = await create(user, metadata={"a": "1"}, ttl_ms=60_000)
    assert ((await state(user, session)).version, (await state(user, session)).ttl_ms) == (1, 60_000)
    limits = limits_pb2.Limits(turns=7)
    policies = pb.TurnPolicies(on_conflict=pb.ON_CONFLICT_ENQUEUE)
    changed = await update(
        user, session, expected_version=1, metadata=pb.Metadata(pairs={"b": "2"}), limits=limits, policies=policies
    )
    assert (changed.version, dict(changed.metadata), changed.limits, changed.ttl_ms) == (2, {"b": "2"}, limits, 60_000)
    assert changed.policies == pb.TurnPolicies(
        on_conflict=pb.ON_CONFLICT_ENQUEUE, on_disconnect=pb.ON_DISCONNECT_CONTINUE
    )
    with pytest.raises(grpc.aio.AioRpcError) as stale:
        await update(user, session, expected_version=1, ttl_ms=0)
    assert told(stale.value)["baton-error-field"] == "expected_version"
    assert not (await update(user, session, ttl_ms=0)).HasField("ttl_ms")


BAD: dict[str, tuple[str, dict[str, object]]] = {
    "nothing": ("metadata", {}),
    "too many metadata": ("metadata", {"metadata": pb.Metadata(pairs={str(n): "" for n in range(17)})}),
    "a life of centuries": ("ttl_ms", {"ttl_ms": 1 << 60}),
    "a limit that no store holds": ("limits.turns", {"limits": limits_pb2.Limits(turns=1 << 63)}),
    "an unknown policy": ("policies.on_conflict", {"policies": pb.TurnPolicies(on_conflict=77)}),  # type: ignore[arg-type]
    "another unknown policy": ("policies.on_disconnect", {"policies": pb.TurnPolicies(on_disconnect=77)}),  # type: ignore[arg-type]
    "an unknown session": ("session", {"session": "sess-none", "ttl_ms": 5}),
    "a version that is none": ("expected_version", {"expected_version": (1 << 64) - 1, "ttl_ms": 5}),
}


async def test_bad_changes_are_refused_by_their_field_and_change_nothing(user: User) -> None:
    session = await create(user)
    for case, (field, change) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await update(user, **({"session": session} | change))  # type: ignore[arg-type]
        assert told(refused.value)["baton-error-field"] == field, case
    assert (await state(user, session)).version == 1


async def test_a_turn_does_what_the_sessions_policies_say_unless_it_says_itself(user: User) -> None:
    session = await create(user, policies=pb.TurnPolicies(on_conflict=pb.ON_CONFLICT_ENQUEUE))
    first, second = await asyncio.gather(user.run(session, "One.", sampling=LONG), user.run(session, "Two."))
    assert {first.end.status, second.end.status} == {pb.TURN_STATUS_COMMITTED}
    running = asyncio.get_running_loop().create_task(user.run(session, "Three.", seen := Seen(), sampling=LONG))
    await until(lambda: bool(seen.tokens))
    with pytest.raises(grpc.aio.AioRpcError) as busy:
        await user.run(session, "Four.", on_conflict=pb.ON_CONFLICT_REJECT)
    assert told(busy.value)["baton-error-field"] == "on_conflict"
    await running


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not there():  # noqa: ASYNC110 - what comes is a stream's matter
            await asyncio.sleep(0.01)


async def test_a_watcher_sees_what_happens_and_goes_on_where_he_was(user: User) -> None:
    session = await create(user)
    call = user.stub.WatchSession(pb.WatchSessionRequest(session=session), timeout=60)
    first = await read(call)
    assert (first.number, first.state.id) == (0, session)
    turn = (await user.run(session)).end.id
    await user.stub.Fork(pb.ForkRequest(session=session, name="other"), timeout=20)
    await update(user, session, ttl_ms=5000)
    seen = [await read(call) for _ in range(4)]
    assert [notice.WhichOneof("kind") for notice in seen] == ["opened", "ended", "forked", "updated"]
    assert [notice.number for notice in seen] == [1, 2, 3, 4]
    opened, ended, forked, updated = seen
    assert (opened.opened.turn, opened.opened.status) == (turn, pb.TURN_STATUS_RUNNING)
    assert (ended.ended.turn, ended.ended.stop_reason) == (turn, pb.STOP_REASON_LENGTH)
    assert (forked.forked.branch, forked.forked.head, updated.updated) == ("other", turn, 2)
    again = user.stub.WatchSession(pb.WatchSessionRequest(session=session, after=2), timeout=60)
    assert [await read(again) for _ in range(2)] == seen[2:]
    again.cancel()
    await user.stub.DeleteSession(pb.DeleteSessionRequest(session=session), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await call.read()
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


async def read(call: grpc.aio.UnaryStreamCall[pb.WatchSessionRequest, pb.SessionNotice]) -> pb.SessionNotice:
    notice = await call.read()
    assert isinstance(notice, pb.SessionNotice)
    return notice


async def test_who_watches_after_what_has_not_come_is_refused(user: User) -> None:
    session = await create(user)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.stub.WatchSession(pb.WatchSessionRequest(session=session, after=1), timeout=20).read()
    assert told(refused.value)["baton-error-field"] == "after"


async def test_usage_is_in_what_get_tells(user: User) -> None:
    session = await create(user)
    text = "A text that is long enough to fill a page or two of eight tokens."
    ends = [(await user.run(session, text)).end for _ in range(2)]
    told = await state(user, session)
    assert told.reserved == limits_pb2.Spending()
    assert told.used.cached_tokens == ends[1].usage.cached_tokens > 0
    assert told.used.prompt_tokens == sum(end.usage.prompt_tokens - end.usage.cached_tokens for end in ends)
    assert (told.used.completion_tokens, told.used.turns) == (2 * NEW, 2)
    assert told.used.wall_ms > 0
    assert told.used.kv_byte_seconds == sum(end.spent.kv_byte_seconds for end in ends) > 0


async def test_a_turn_ends_where_its_sessions_tokens_do_and_the_next_is_refused(user: User) -> None:
    """What there is, is committed, and is what an unbounded answer begins with."""
    session = await create(user, limits=limits_pb2.Limits(completion_tokens=300))
    seen = await user.run(session, "Tell me all.", sampling=LONG)
    assert (seen.end.status, seen.end.stop_reason) == (pb.TURN_STATUS_COMMITTED, pb.STOP_REASON_BUDGET)
    assert seen.end.limit == "completion_tokens"
    assert seen.tokens == expected("Tell me all.", tokens=900)[0][:300]
    assert (await state(user, session)).used.completion_tokens == 300
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.run(session)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert told(refused.value)["baton-error-code"] == "budget"
    assert told(refused.value)["baton-error-field"] == "limits.completion_tokens"
    assert "300 of 300 completion_tokens" in (refused.value.details() or "")
    await update(user, session, limits=limits_pb2.Limits(completion_tokens=300 + NEW))
    more = await user.run(session, "And now?")
    assert (more.tokens, more.end.stop_reason) == (
        expected_after("Tell me all.", seen.tokens, "And now?"), pb.STOP_REASON_LENGTH,
    )  # fmt: skip


def expected_after(first: str, answer: list[int], then: str) -> list[int]:
    from runtime.domain.sequence import Sampling
    from runtime.engine.simulated import SimulatedTokenizer, continuation

    tokenizer = SimulatedTokenizer()
    context = tokenizer.render_chat([{"role": "user", "content": first}]) + answer
    context += tokenizer.render_delta([], [{"role": "user", "content": then}])
    return continuation(context, Sampling(NEW, temperature=0))


async def test_branches_that_run_at_once_spend_no_more_than_the_limit(user: User) -> None:
    """Invariant 12."""
    session = await create(user, limits=limits_pb2.Limits(completion_tokens=1000))
    names = [f"b{number}" for number in range(3)]
    for name in names:
        await user.stub.Fork(pb.ForkRequest(session=session, name=name), timeout=20)
    seen = await asyncio.gather(*(user.run(session, name, branch=name, sampling=LONG) for name in names))
    assert sum(len(each.tokens) for each in seen) <= 1000
    assert {each.end.stop_reason for each in seen} == {pb.STOP_REASON_BUDGET}
    used = (await state(user, session)).used
    assert used.completion_tokens == sum(len(each.tokens) for each in seen)
    assert used.completion_tokens > 900


@pytest.mark.parametrize(
    ("limits", "limit"),
    [(limits_pb2.Limits(wall_ms=300), "wall_ms"), (limits_pb2.Limits(kv_byte_seconds=500), "kv_byte_seconds")],
)
async def test_a_turn_whose_time_or_kv_is_spent_ends(user: User, limits: limits_pb2.Limits, limit: str) -> None:
    session = await create(user, limits=limits)
    seen = await user.run(session, "Tell me all.", sampling=ENDLESS)
    assert (seen.end.stop_reason, seen.end.limit) == (pb.STOP_REASON_BUDGET, limit)
    assert 0 < len(seen.tokens) < 3900
    used = (await state(user, session)).used
    assert getattr(used, limit) == getattr(limits, limit)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.run(session)
    assert told(refused.value)["baton-error-field"] == f"limits.{limit}"


async def test_a_turn_tells_where_its_prompts_kv_came_from_and_why_some_of_it_was_not_there(user: User) -> None:
    session = await create(user)
    text = "A text that is long enough to fill a page or two of eight tokens."
    first, second = [(await user.run(session, text)).end for _ in range(2)]
    assert (first.sources.missed, first.sources.reason) == (0, pb.MISS_REASON_UNSPECIFIED)
    known = first.usage.prompt_tokens + NEW
    assert second.sources.pool + second.sources.handed_over == (known - 1) // 8 * 8 == second.usage.cached_tokens
    assert second.sources.computed == second.usage.prompt_tokens - second.usage.cached_tokens
    assert (second.sources.missed, second.sources.reason) == (
        known - second.usage.cached_tokens, pb.MISS_REASON_NEVER_STORED,
    )  # fmt: skip
    others = [await create(user) for _ in range(10)]
    await asyncio.gather(*(user.run(other, f"{number} " * 1900) for number, other in enumerate(others)))
    third = (await user.run(session, text)).end
    assert third.usage.cached_tokens < second.usage.cached_tokens
    assert third.sources.missed > second.usage.prompt_tokens // 2
    assert third.sources.reason in (pb.MISS_REASON_EVICTED, pb.MISS_REASON_BRANCH_COLD)


async def test_a_turn_that_runs_meets_a_new_limit_with_its_next_slice(user: User) -> None:
    session = await create(user)
    seen = Seen()
    running = asyncio.get_running_loop().create_task(user.run(session, "Tell me all.", seen, sampling=ENDLESS))
    await until(lambda: bool(seen.tokens))
    await update(user, session, limits=limits_pb2.Limits(completion_tokens=1))
    await running
    assert (seen.end.stop_reason, seen.end.limit) == (pb.STOP_REASON_BUDGET, "completion_tokens")
    held = (await state(user, session)).used.completion_tokens
    assert len(seen.tokens) == held < 3900, "what it held before the limit is its own"
