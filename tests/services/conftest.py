"""A mesh over real gRPC, and a stub that calls its gateway."""

from collections.abc import AsyncIterator

import grpc
import pytest

from batonmesh.v1 import inference_pb2_grpc
from tests.services.grpc_mesh import GrpcMesh, grpc_mesh


@pytest.fixture
async def mesh() -> AsyncIterator[GrpcMesh]:
    async with grpc_mesh() as running:
        yield running


@pytest.fixture
async def stub(mesh: GrpcMesh) -> AsyncIterator[inference_pb2_grpc.InferenceStub]:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)
