"""A mesh with the simulated engine for commands to talk to: real gRPC and HTTP, on an event loop of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh


@dataclass(frozen=True)
class Served:
    """`portal` runs what has to run where the mesh does."""

    mesh: LocalMesh
    portal: BlockingPortal


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One prefill worker, two decode workers; 64 tokens are enough to be prefilled elsewhere."""
    config = Config(
        mesh=MeshConfig(name="cli", state=tmp_path_factory.mktemp("state")),
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=4096, base_ms=1, token_ms=0.05)),
        engine=EngineConfig(pages=1024, itl_ms=None),
        handoff=HandoffConfig(remote_min_tokens=64),
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(local_mesh(config, http_port=0)) as mesh:
        yield Served(mesh, portal)


@pytest.fixture
def target(served: Served) -> str:
    return served.mesh.grpc
