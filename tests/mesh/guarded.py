"""A small mesh with TLS or keys on it, and callers of every kind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from batonmesh.v1 import (
    erasure_pb2,
    inference_pb2,
    kv_pb2,
    mesh_pb2,
    mirror_pb2,
    nixl_pb2,
    pages_pb2,
    session_pb2,
    worker_pb2,
)
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig
from runtime.domain.identity import MEMBERS, Caller, Role, server_name
from runtime.ids import TenantId
from runtime.mesh.authority import LOCAL_HOSTS, Authority, Issued
from runtime.mesh.local import LocalMesh
from runtime.pem import split_pem
from runtime.protection import AccessConfig, TlsConfig

MESH = "guarded"
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
CALLERS_THERE_ARE = (*(Caller(role) for role in (*MEMBERS, Role.ADMIN)), Caller(Role.CLIENT, ACME))
METHODS = tuple(
    f"/{service.full_name}/{method.name}"
    for file in (
        erasure_pb2,
        inference_pb2,
        kv_pb2,
        mesh_pb2,
        mirror_pb2,
        nixl_pb2,
        pages_pb2,
        session_pb2,
        worker_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)


def config(folder: Path, **access: object) -> Config:
    return Config(
        mesh=MeshConfig(name=MESH, state=folder),
        model=ModelConfig(name="simulated", simulated=SimulatedConfig()),
        engine=EngineConfig(pages=256, page_tokens=8),
        tls=TlsConfig(enabled=True),
        access=AccessConfig.model_validate({"tenants": (ACME, GLOBEX), **access}),
    )


def make_certificates(config: Config) -> Authority:
    authority = Authority.create(config.certificates, MESH)
    for caller in CALLERS_THERE_ARE:
        issue(authority, caller)
    return authority


def issue(authority: Authority, caller: Caller) -> Issued:
    return authority.issue(caller, LOCAL_HOSTS if caller.role is Role.GATEWAY else ())


def ports(mesh: LocalMesh) -> dict[str, Role]:
    """Every address that the mesh listens at for gRPC, and whose it is."""
    workers = {running.worker.address: Role(running.worker.role) for running in mesh.workers.values()}
    return {mesh.controller.address: Role.CONTROLLER, mesh.grpc: Role.GATEWAY, **workers}


@asynccontextmanager
async def channel(address: str, role: Role, authorities: bytes, own: bytes | None) -> AsyncIterator[grpc.aio.Channel]:
    """To a server of this role; `own` is a file as `baton certs` makes it, or nothing is shown."""
    key, chain = split_pem(own) if own is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(authorities, key, chain)
    options = (
        ("grpc.ssl_target_name_override", server_name(MESH, role)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    )
    async with grpc.aio.secure_channel(address, credentials, options=options) as opened:
        yield opened


async def answer(
    channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.StatusCode | None:
    """How an RPC answers an empty message: its status, or None when it begins to answer."""
    while True:
        call = channel.stream_stream(method, None, None)(iter([b""]), timeout=30, metadata=metadata)
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            # What gRPC says when the call was over before the message could be sent.
            if error.details() == "Internal error from Core":
                continue
            return error.code()
        if isinstance(first, bytes):
            call.cancel()
            return None
        return await call.code()
