"""The controller by gRPC: who registers, who leaves, and who learns of it."""

from collections.abc import AsyncIterator

import grpc
import pytest

from batonmesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.services.grpc_mesh import SPEC, GrpcMesh, grpc_mesh, told


@pytest.fixture
async def mesh() -> AsyncIterator[GrpcMesh]:
    async with grpc_mesh() as running:
        yield running


@pytest.fixture
async def channel(mesh: GrpcMesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.controller_address) as opened:
        yield opened


@pytest.fixture
def registry(channel: grpc.aio.Channel) -> mesh_pb2_grpc.RegistryStub:
    return mesh_pb2_grpc.RegistryStub(channel)


def worker(**changes: object) -> mesh_pb2.RegisterRequest:
    fields = {
        "id": "decode-7", "boot": "boot-7", "role": "decode", "address": "somewhere:1", "model": SPEC.name,
        "kv_fingerprint": SPEC.kv_fingerprint, "serving_fingerprint": SPEC.serving_fingerprint,
        "max_tokens": SPEC.max_tokens, "page_tokens": SPEC.page_tokens, "device": "cpu x1",
    } | changes  # fmt: skip
    return mesh_pb2.RegisterRequest(worker=mesh_pb2.Worker(**fields))  # type: ignore[arg-type]


async def test_watchers_learn_of_who_registers_and_who_leaves(registry: mesh_pb2_grpc.RegistryStub) -> None:
    watch = aiter(registry.Watch(mesh_pb2.WatchRequest(), timeout=20))

    async def names() -> set[str]:
        return {each.id for each in (await anext(watch)).view.workers}

    assert await names() == {"prefill-0", "decode-0"}
    await registry.Register(worker())
    assert await names() == {"prefill-0", "decode-0", "decode-7"}
    await registry.Leave(mesh_pb2.LeaveRequest(worker="decode-7", boot="boot-6"))  # not this generation
    await registry.Leave(mesh_pb2.LeaveRequest(worker="decode-7", boot="boot-7"))
    assert await names() == {"prefill-0", "decode-0"}


async def test_the_topology_is_that_of_the_controller_and_of_the_gateway(
    mesh: GrpcMesh, channel: grpc.aio.Channel
) -> None:
    of_controller = await mesh_pb2_grpc.MeshStub(channel).Topology(mesh_pb2.TopologyRequest())
    async with grpc.aio.insecure_channel(mesh.address) as to_gateway:
        of_gateway = await mesh_pb2_grpc.MeshStub(to_gateway).Topology(mesh_pb2.TopologyRequest())
    assert of_controller == of_gateway


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "other"), ("kv_fingerprint", "ab" * 16), ("serving_fingerprint", "ab" * 16), ("page_tokens", 16)],
)
async def test_a_worker_that_serves_something_else_is_refused_by_what_differs(
    registry: mesh_pb2_grpc.RegistryStub, field: str, value: object
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await registry.Register(worker(**{field: value}))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (told(refused.value)["baton-error-code"], told(refused.value)["baton-error-field"]) == (
        "incompatible",
        field,
    )


async def test_a_malformed_registration_is_refused_by_its_field(registry: mesh_pb2_grpc.RegistryStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await registry.Register(worker(role="router"))
    assert told(refused.value)["baton-error-field"] == "worker.role"
