"""A gateway's stream with a decode worker, written by hand as another vendor would."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from batonmesh.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from runtime.domain.messages import Output
from runtime.domain.sequence import Ref, Sampled, Sampling
from runtime.engine.simulated import StepProfile, continuation
from runtime.ids import TurnId
from runtime.roles.decode import DecodeRole
from tests.services.grpc_mesh import GrpcMesh, grpc_mesh, told

Stream = grpc.aio.StreamStreamCall[worker_pb2.DecodeCommand, worker_pb2.StepBatch]
HELLO = worker_pb2.DecodeCommand(hello=worker_pb2.Hello(gateway="gw-raw"))
REF = common_pb2.Ref(turn="turn-raw", epoch=1, attempt=1)
PROMPT = (70, 71, 72, 73)
SLOW = StepProfile(base_ms=2.0)


@pytest.fixture
async def mesh() -> AsyncIterator[GrpcMesh]:
    async with grpc_mesh(prefill=0, profile=SLOW) as running:
        yield running


@asynccontextmanager
async def attached(mesh: GrpcMesh, *, hello: bool = True) -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(mesh.workers["decode-0"].worker.address) as channel:
        call: Stream = worker_pb2_grpc.DecodeStub(channel).Attach(None, timeout=20)
        if hello:
            await call.write(HELLO)
        yield call
        call.cancel()


def start(ref: common_pb2.Ref = REF, max_tokens: int = 10) -> worker_pb2.DecodeCommand:
    sampling = common_pb2.Sampling(max_tokens=max_tokens, temperature=0)
    return worker_pb2.DecodeCommand(
        start=worker_pb2.Start(ref=ref, tenant="default", prompt=PROMPT, sampling=sampling, remaining_ms=20_000)
    )


async def outputs(call: Stream, enough: Callable[[list[worker_pb2.Output]], bool]) -> list[worker_pb2.Output]:
    """Outputs until there are `enough`."""
    found: list[worker_pb2.Output] = []
    while not enough(found):
        batch = await call.read()
        assert isinstance(batch, worker_pb2.StepBatch)
        found.extend(batch.outputs)
    return found


def finished(found: list[worker_pb2.Output]) -> bool:
    return any(output.HasField("finish") for output in found)


def failed(found: list[worker_pb2.Output]) -> bool:
    return any(output.HasField("failed") for output in found)


async def test_hello_is_answered_at_once_and_tokens_follow_a_start(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        first = await call.read()
        assert isinstance(first, worker_pb2.StepBatch)
        assert first.HasField("load")
        await call.write(start())
        found = await outputs(call, finished)
    assert [token for output in found for token in output.tokens] == continuation(PROMPT, Sampling(10, temperature=0))
    assert [output.HasField("handoff") for output in found] == [True] + [False] * (len(found) - 1)


async def test_batches_that_are_ready_together_travel_as_one_and_in_order(mesh: GrpcMesh) -> None:
    worker = mesh.workers["decode-0"]
    assert isinstance(worker.role, DecodeRole)
    async with attached(mesh) as call:
        await call.read()
        link = worker.role._links[-1]
        for index in range(5):  # between two passes of the event loop, as a fast engine would
            link.pending.append(Output(Ref(TurnId("turn-fast"), 1, 1), index, (Sampled(index),), "x"))
            link.flush()
        batch = await call.read()
    assert isinstance(batch, worker_pb2.StepBatch)
    assert [output.index for output in batch.outputs] == [0, 1, 2, 3, 4]
    assert batch.HasField("load")


async def test_a_stream_that_breaks_goes_on_where_the_next_attaches(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        await call.write(start(max_tokens=60))
        before = await outputs(call, lambda found: len(found) >= 5)
    have = sum(len(output.tokens) for output in before)
    async with attached(mesh) as call:
        await call.write(worker_pb2.DecodeCommand(attach=worker_pb2.Attach(ref=REF, have=have)))
        after = await outputs(call, finished)
        await call.write(worker_pb2.DecodeCommand(acknowledge=worker_pb2.Acknowledge(ref=REF)))
        await mesh.idle()
    tokens = [token for output in before for token in output.tokens]
    for output in after:
        tokens[output.index :] = output.tokens
    assert tokens == continuation(PROMPT, Sampling(60, temperature=0))


async def test_attaching_to_an_unknown_attempt_is_answered_with_not_found(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        await call.write(worker_pb2.DecodeCommand(attach=worker_pb2.Attach(ref=REF, have=0)))
        (answer,) = await outputs(call, failed)
    assert (answer.ref, answer.failed.code) == (REF, "not_found")


async def test_an_older_attempt_than_the_newest_seen_is_stale(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        await call.write(start(common_pb2.Ref(turn="turn-raw", epoch=1, attempt=2)))
        await call.write(start(REF))
        found = await outputs(call, lambda found: failed(found) and finished(found))
    assert [output.failed.code for output in found if output.HasField("failed")] == ["stale"]
    assert {output.ref.attempt for output in found if output.tokens} == {2}


async def test_a_cancelled_attempt_ends_and_leaves_nothing(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        await call.write(start(max_tokens=900))
        await outputs(call, lambda found: len(found) >= 2)
        await call.write(worker_pb2.DecodeCommand(cancel=worker_pb2.Cancel(ref=REF)))
        *_, last = await outputs(call, failed)
        assert last.failed.code == "cancelled"
        await mesh.idle()


@pytest.mark.parametrize(
    ("field", "commands"),
    [
        ("command", [start()]),
        ("command", [worker_pb2.DecodeCommand()]),
        ("hello.gateway", [worker_pb2.DecodeCommand(hello=worker_pb2.Hello())]),
        ("command", [HELLO, HELLO]),
        ("command", [HELLO, worker_pb2.DecodeCommand()]),
        ("max_tokens", [HELLO, start(max_tokens=0)]),
        ("ref.turn", [HELLO, start(common_pb2.Ref(epoch=1, attempt=1))]),
    ],
)
async def test_a_command_that_makes_no_sense_ends_the_stream_by_its_field(
    mesh: GrpcMesh, field: str, commands: list[worker_pb2.DecodeCommand]
) -> None:
    async with attached(mesh, hello=False) as call:
        for command in commands:
            await call.write(command)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await outputs(call, finished)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert told(ended.value)["baton-error-field"] == field


async def test_a_command_that_does_not_parse_ends_the_stream_by_its_field(mesh: GrpcMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.workers["decode-0"].worker.address) as channel:
        call = channel.stream_stream("/batonmesh.v1.Decode/Attach", None, None)(None, timeout=20)
        await call.write(HELLO.SerializeToString())
        await call.write(start().SerializeToString().replace(b"default", b"d\xfffault"))
        with pytest.raises(grpc.aio.AioRpcError, match=r"start\.tenant is not valid UTF-8") as ended:
            await exhaust(call)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gateway_that_ends_its_side_ends_the_stream_well(mesh: GrpcMesh) -> None:
    async with attached(mesh) as call:
        await call.read()
        await call.done_writing()
        async with asyncio.timeout(10):
            while isinstance(await call.read(), worker_pb2.StepBatch):
                pass
        assert await call.code() is grpc.StatusCode.OK


async def exhaust(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    while await call.read():
        pass
