"""Sessions by gRPC: turns that commit once, streams that resume, branches, conflicts, and refusals by field."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2, inference_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.mesh.local import LocalMesh
from tests.services.grpc_mesh import told
from tests.services.session_mesh import NEW, Seen, User, expected, run, session_mesh

LONG = common_pb2.Sampling(max_tokens=600, temperature=0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[LocalMesh, User]]:
    async with session_mesh(tmp_path) as both:
        yield both


@pytest.fixture
def user(served: tuple[LocalMesh, User]) -> User:
    return served[1]


async def begun(
    user: User, session: str, text: str = "Tell me all.", **more: object
) -> tuple[Seen, asyncio.Task[Seen]]:
    """A long turn that has given some tokens, and whoever reads on."""
    seen = Seen()
    reading = asyncio.get_running_loop().create_task(user.run(session, text, seen, **({"sampling": LONG} | more)))
    await some(seen)
    return seen, reading


async def some(seen: Seen) -> None:
    """Wait until some tokens came."""
    async with asyncio.timeout(20):
        while len(seen.tokens) < 3:  # noqa: ASYNC110 - what comes is a stream's matter
            await asyncio.sleep(0.01)


async def test_a_conversation_goes_on_with_the_tokens_that_were_committed(user: User) -> None:
    """Invariant 6: each prompt is the committed tokens and what is new, so the answers are those of one sequence."""
    session = await user.create()
    texts = ["My dog is called Rex.", "What is my dog called?", "Thank you."]
    seen = [await user.run(session, text) for text in texts]
    assert [each.tokens for each in seen] == expected(*texts)
    assert [each.end.status for each in seen] == [pb.TURN_STATUS_COMMITTED] * 3
    assert [each.end.stop_reason for each in seen] == [pb.STOP_REASON_LENGTH] * 3
    branch = await user.branch(session)
    assert (branch.head, branch.turns, branch.running) == (seen[-1].end.id, 3, "")
    assert branch.tokens == seen[-1].end.usage.prompt_tokens + NEW
    assert await user.said(session) == [
        each for text, one in zip(texts, seen, strict=True) for each in (text, one.text)
    ]


async def test_the_next_turn_computes_only_what_is_new(user: User) -> None:
    session = await user.create()
    text = "A text that is long enough to fill a page or two of eight tokens."
    before = await user.run(session, text)
    for _ in range(3):
        seen = await user.run(session, text)
        # The answer's last token was never computed; of the rest, whole pages are cached.
        known = before.end.usage.prompt_tokens + NEW - 1
        assert seen.end.usage.cached_tokens == known // 8 * 8
        before = seen


async def test_one_key_is_one_turn_and_another_request_under_it_is_refused(user: User) -> None:
    """Invariant 4."""
    session = await user.create()
    seen = await asyncio.gather(*(user.run(session, idempotency_key="one") for _ in range(6)))
    assert len({each.end.id for each in seen}) == 1
    assert len({each.text for each in seen}) == 1
    assert (await user.branch(session)).turns == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.run(session, "Something else.", idempotency_key="one")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert told(refused.value)["baton-error-field"] == "idempotency_key"


async def test_a_stream_resumes_after_every_message(user: User) -> None:
    """Invariant 7, cut at every index."""
    session = await user.create()
    messages = [message async for message in user.stub.RunTurn(run(session))]
    turn = messages[0].opened.id
    for message in messages:
        asked = pb.ResumeTurnRequest(session=session, turn=turn, after_seq=message.seq)
        assert [each async for each in user.stub.ResumeTurn(asked)] == messages[message.seq + 1 :]
    whole = await user.resume(session, turn)
    assert whole.tokens == expected("Hello.")[0]


async def test_a_stream_cannot_resume_after_what_has_not_come(user: User) -> None:
    session = await user.create()
    seen, reading = await begun(user, session)
    assert seen.opened is not None
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.resume(session, seen.opened.id, Seen(seq=100_000))
    assert told(refused.value)["baton-error-field"] == "after_seq"
    await reading


async def test_a_turn_goes_on_when_its_client_has_gone(user: User) -> None:
    session = await user.create()
    seen, reading = await begun(user, session)
    reading.cancel()
    await asyncio.wait((reading,))
    assert seen.opened is not None
    await user.resume(session, seen.opened.id, seen)
    assert seen.tokens == expected("Tell me all.", tokens=600)[0]
    assert (await user.branch(session)).turns == 1


async def test_a_turn_that_is_not_to_go_on_alone_is_cancelled_when_the_last_watcher_leaves(user: User) -> None:
    session = await user.create()
    seen, reading = await begun(user, session, on_disconnect=pb.ON_DISCONNECT_CANCEL)
    assert seen.opened is not None
    also = Seen()
    other = asyncio.get_running_loop().create_task(user.resume(session, seen.opened.id, also))
    await some(also)
    reading.cancel()
    await asyncio.wait((reading,))
    assert (await user.branch(session)).running == seen.opened.id
    other.cancel()
    end = (await user.resume(session, seen.opened.id)).end
    assert end.status == pb.TURN_STATUS_CANCELLED
    assert (await user.branch(session)).head == ""


@pytest.mark.parametrize("keep", [True, False])
async def test_a_cancelled_turn_keeps_or_discards_what_there_is(user: User, keep: bool) -> None:
    session = await user.create()
    seen, reading = await begun(user, session)
    assert seen.opened is not None
    await user.stub.CancelTurn(pb.CancelTurnRequest(session=session, turn=seen.opened.id, keep=keep))
    await reading
    branch = await user.branch(session)
    if keep:
        assert (seen.end.status, seen.end.stop_reason) == (pb.TURN_STATUS_COMMITTED, pb.STOP_REASON_INTERRUPTED)
        assert branch.head == seen.end.id
        assert await user.said(session) == ["Tell me all.", seen.text]
        assert branch.tokens == seen.end.usage.prompt_tokens + len(seen.tokens)
    else:
        assert (seen.end.status, branch.head, branch.turns) == (pb.TURN_STATUS_CANCELLED, "", 0)
    assert (await user.run(session)).end.status == pb.TURN_STATUS_COMMITTED


async def test_a_busy_branch_refuses_or_lets_wait(user: User) -> None:
    session = await user.create()
    _, reading = await begun(user, session)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.run(session)
    assert told(refused.value)["baton-error-field"] == "on_conflict"
    second = asyncio.get_running_loop().create_task(user.run(session, on_conflict=pb.ON_CONFLICT_ENQUEUE))
    first, waited = await reading, await second
    assert waited.opened is not None
    assert waited.opened.status == pb.TURN_STATUS_QUEUED
    assert waited.end.epoch > first.end.epoch
    assert (await user.branch(session)).head == waited.end.id


@pytest.mark.parametrize(("policy", "turns"), [(pb.ON_CONFLICT_INTERRUPT, 2), (pb.ON_CONFLICT_ROLLBACK, 1)])
async def test_who_interrupts_comes_at_once(user: User, policy: pb.OnConflict.ValueType, turns: int) -> None:
    session = await user.create()
    _, reading = await begun(user, session)
    second = await user.run(session, on_conflict=policy)
    first = await reading
    assert len(first.tokens) < 600
    assert second.end.status == pb.TURN_STATUS_COMMITTED
    branch = await user.branch(session)
    assert (branch.head, branch.turns) == (second.end.id, turns)


@pytest.mark.parametrize(
    "policy",
    [pb.ON_CONFLICT_REJECT, pb.ON_CONFLICT_ENQUEUE, pb.ON_CONFLICT_INTERRUPT, pb.ON_CONFLICT_ROLLBACK],
)
async def test_64_turns_at_once_leave_one_history(user: User, policy: pb.OnConflict.ValueType) -> None:
    """Invariant 2, under each policy."""
    session = await user.create()

    async def one(number: int) -> Seen | None:
        try:
            return await user.run(session, f"Number {number}.", on_conflict=policy)
        except grpc.aio.AioRpcError as error:
            if policy != pb.ON_CONFLICT_REJECT or told(error)["baton-error-field"] != "on_conflict":
                raise
            return None

    seen = [each for each in await asyncio.gather(*map(one, range(64))) if each is not None]
    committed = [each for each in seen if each.end.status == pb.TURN_STATUS_COMMITTED]
    branch, said = await user.branch(session), await user.said(session)
    assert (branch.turns, len(said), branch.running) == (len(committed), 2 * len(committed), "")
    assert sorted(said[1::2]) == sorted(each.text for each in committed)
    if policy == pb.ON_CONFLICT_ENQUEUE:
        assert len(committed) == 64
        assert [each.tokens for each in sorted(committed, key=lambda each: each.end.epoch)] == expected(*said[::2])
    elif policy == pb.ON_CONFLICT_INTERRUPT:
        assert len(seen) == len(committed) == 64


async def test_forks_and_rollbacks(user: User) -> None:
    session = await user.create()
    first, second = [await user.run(session, text) for text in ("One.", "Two.")]
    fork = await user.stub.Fork(pb.ForkRequest(session=session, name="other", turn=first.end.id))
    assert (fork.head, fork.turns) == (first.end.id, 1)
    other = await user.run(session, "Three.", branch="other")
    assert [first.tokens, other.tokens] == expected("One.", "Three.")
    assert (await user.branch(session)).head == second.end.id
    back = await user.stub.Rollback(pb.RollbackRequest(session=session, turn=first.end.id))
    assert (back.head, back.turns) == (first.end.id, 1)
    again = await user.run(session, "Three.", expected_head=first.end.id)
    assert again.tokens == other.tokens
    assert await user.said(session) == await user.said(session, "other")


async def test_a_stop_string_ends_a_turn_and_is_not_committed(user: User) -> None:
    session = await user.create()
    plain = await user.run(session)
    word = plain.text.split()[4]
    session = await user.create()
    stopped = await user.run(session, sampling=common_pb2.Sampling(max_tokens=NEW, temperature=0, stop=[f" {word}"]))
    assert stopped.end.stop_reason == pb.STOP_REASON_END_TURN
    assert stopped.text == plain.text[: plain.text.index(f" {word}")]
    kept = len(stopped.text.split())
    assert (await user.branch(session)).tokens == stopped.end.usage.prompt_tokens + kept


async def test_a_turn_that_fails_says_why_and_leaves_the_branch(user: User) -> None:
    session = await user.create()
    seen = await user.run(session, sampling=LONG, deadline_ms=1)
    assert seen.end.status == pb.TURN_STATUS_FAILED
    assert seen.end.error.code == "deadline"
    assert (await user.branch(session)).turns == 0
    assert (await user.run(session)).tokens == expected("Hello.")[0]


async def test_a_conversation_that_fills_the_context_is_refused_and_can_be_rolled_back(user: User) -> None:
    session = await user.create()
    await user.run(session, "x" * 4000, sampling=common_pb2.Sampling(temperature=0))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.run(session)
    assert told(refused.value)["baton-error-code"] == "context"
    await user.stub.Rollback(pb.RollbackRequest(session=session))
    assert (await user.run(session)).tokens == expected("Hello.")[0]


async def test_a_deleted_session_is_gone(user: User) -> None:
    session = await user.create()
    _, reading = await begun(user, session)
    await user.stub.DeleteSession(pb.DeleteSessionRequest(session=session))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await reading
    assert ended.value.code() is grpc.StatusCode.NOT_FOUND
    listed = await user.stub.ListSessions(pb.ListSessionsRequest())
    assert session not in [each.id for each in listed.sessions]


MESSAGE = inference_pb2.ChatMessage(role="user", content="Hello.")
BAD: dict[str, tuple[str, dict[str, object]]] = {
    "no session": ("session", {"session": ""}),
    "an unknown session": ("session", {"session": "sess-none"}),
    "an unknown branch": ("branch", {"branch": "none"}),
    "nothing said": ("items", {"items": []}),
    "too much said": ("items", {"items": [MESSAGE] * 10_000}),
    "an item without a role": ("items[0].role", {"items": [inference_pb2.ChatMessage(content="x")]}),
    "an item too large": (
        "items[1].content",
        {"items": [MESSAGE, inference_pb2.ChatMessage(role="user", content="x" * ((1 << 20) + 1))]},
    ),
    "a NUL": ("items[0].content", {"items": [inference_pb2.ChatMessage(role="user", content="a\0b")]}),
    "a stale head": ("expected_head", {"expected_head": "turn-none"}),
    "a key too long": ("idempotency_key", {"idempotency_key": "x" * 129}),
    "logprobs": ("logprobs", {"sampling": common_pb2.Sampling(logprobs=2)}),
    "logprobs of the prompt": ("prompt_logprobs", {"sampling": common_pb2.Sampling(prompt_logprobs=2)}),
    "a temperature out of range": ("temperature", {"sampling": common_pb2.Sampling(temperature=9)}),
    "no time": ("deadline_ms", {"deadline_ms": 0}),
    "an unknown policy": ("on_conflict", {"on_conflict": 77}),
}


async def test_bad_input_is_refused_by_its_field_and_nothing_is_half_written(user: User) -> None:
    session = await user.create()
    for case, (field, change) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await user.run(**({"session": session} | change))  # type: ignore[arg-type]
        assert told(refused.value)["baton-error-field"] == field, case
    assert (await user.branch(session)).turns == 0
    too_much = {f"key-{number}": "x" for number in range(17)}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.stub.CreateSession(pb.CreateSessionRequest(model="simulated", metadata=too_much))
    assert told(refused.value)["baton-error-field"] == "metadata"
    seen = await user.run(session)
    asked = pb.ResumeTurnRequest(session=session, turn=seen.end.id, after_seq=99)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [_ async for _ in user.stub.ResumeTurn(asked)]
    assert told(refused.value)["baton-error-field"] == "after_seq"


async def test_a_bundle_that_was_tampered_with_comes_in_nowhere(user: User) -> None:
    session = await user.create()
    await user.run(session)
    data = b"".join([piece.data async for piece in user.stub.Export(pb.ExportRequest(session=session))])
    await user.stub.DeleteSession(pb.DeleteSessionRequest(session=session))
    middle = len(data) // 2
    for forged in (data[:middle], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], b"", b"x" * 99):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await user.stub.Import(iter([pb.ImportRequest(data=forged)]))
        assert told(refused.value)["baton-error-field"] == "bundle"
    assert not (await user.stub.ListSessions(pb.ListSessionsRequest())).sessions
    assert (await user.stub.Import(iter([pb.ImportRequest(data=data)]))).id == session
