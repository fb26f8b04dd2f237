"""What every gRPC server of Baton does, whatever it serves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from batonmesh.v1 import mesh_pb2, mesh_pb2_grpc
from runtime.domain.messages import View
from runtime.errors import IllegalTransition, NotFound, ResourceExhausted, StartError
from runtime.services.guard import Context
from runtime.services.mesh import MeshService
from runtime.services.server import GrpcServer
from tests.services.grpc_mesh import nobody_drains, told

LOCAL = "127.0.0.1"


@asynccontextmanager
async def serving(
    view: Callable[[], View], *, shared: bool = False
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    server = GrpcServer(LOCAL, 0, shared=shared)
    server.add(MeshService(view, nobody_drains))
    async with server, grpc.aio.insecure_channel(f"{LOCAL}:{server.port}") as channel:
        yield server, channel


def topology(channel: grpc.aio.Channel) -> Awaitable[mesh_pb2.TopologyResponse]:
    return mesh_pb2_grpc.MeshStub(channel).Topology(mesh_pb2.TopologyRequest(), timeout=10)


def failing(error: Exception) -> Callable[[], View]:
    def view() -> View:
        raise error

    return view


async def test_an_error_becomes_a_status_with_its_code_field_and_patience() -> None:
    error = ResourceExhausted("too many", field="prompt", retry_after_ms=250)
    async with serving(failing(error)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await topology(channel)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.value.details() == "too many"
    assert told(failed.value) == {
        "baton-error-code": "exhausted",
        "baton-error-field": "prompt",
        "baton-retry-after-ms": "250",
    }


@pytest.mark.parametrize(
    "bug",
    [
        ZeroDivisionError("secret"),
        IllegalTransition("turn", "a", "secret", "x"),
        ExceptionGroup("secret", [OSError("secret")]),
    ],
)
async def test_a_bug_is_an_internal_error_whose_story_is_only_in_the_log(
    bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(failing(bug)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await topology(channel)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" not in str(failed.value.trailing_metadata())
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message == "a call failed by a bug"
    assert record.exc_info is not None
    assert record.exc_info[1] is bug


async def test_an_error_inside_the_group_of_a_task_group_is_still_that_error() -> None:
    grouped = ExceptionGroup("of a task group", [ExceptionGroup("of another", [NotFound("no such thing", field="x")])])
    async with serving(failing(grouped)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await topology(channel)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")


async def test_a_very_long_message_still_fits_into_the_status() -> None:
    async with serving(failing(NotFound("ü" * 100_000))) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await topology(channel)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_taken_port_is_told_by_its_number() -> None:
    async with serving(lambda: View(1, 1)) as (server, _):
        with pytest.raises(StartError, match=str(server.port)):
            GrpcServer(LOCAL, server.port)
        with pytest.raises(StartError, match=str(server.port)):
            GrpcServer(LOCAL, server.port, shared=True)


async def test_a_port_is_shared_only_by_those_who_all_mean_to() -> None:
    async with serving(lambda: View(1, 1), shared=True) as (first, _):
        second = GrpcServer(LOCAL, first.port, shared=True)
        assert second.port == first.port
        second.add(MeshService(lambda: View(1, 1), nobody_drains))
        async with second:
            pass
        with pytest.raises(StartError, match=str(first.port)):
            GrpcServer(LOCAL, first.port)


async def test_health_and_reflection_are_on_every_server_and_draining_is_told() -> None:
    async with serving(lambda: View(1, 1)) as (server, channel):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "batonmesh.v1.Mesh"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        await server.drain()
        request = health_pb2.HealthCheckRequest(service="batonmesh.v1.Mesh")
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await topology(channel)).view.version == 1, "calls are still taken"
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in reflection.ServerReflectionInfo(iter([listing])):
            names = {service.name for service in answer.list_services_response.service}
    assert names == {"batonmesh.v1.Mesh", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving(lambda: View(1, 1)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/batonmesh.v1.Mesh/Nothing", None, None)(b"", timeout=10)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_that_are_under_way_may_end_within_the_grace() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    class Slow(MeshService):
        async def Topology(self, request: mesh_pb2.TopologyRequest, context: Context) -> mesh_pb2.TopologyResponse:
            began.set()
            await release.wait()
            return await super().Topology(request, context)

    server = GrpcServer(LOCAL, 0, grace_s=10)
    server.add(Slow(lambda: View(1, 7), nobody_drains))
    async with grpc.aio.insecure_channel(f"{LOCAL}:{server.port}") as channel, asyncio.TaskGroup() as group:
        async with server:
            answer = group.create_task(_answer(topology(channel)))
            await began.wait()
            asyncio.get_running_loop().call_later(0.05, release.set)
        assert (await answer).view.version == 7


async def _answer(call: Awaitable[mesh_pb2.TopologyResponse]) -> mesh_pb2.TopologyResponse:
    return await call
