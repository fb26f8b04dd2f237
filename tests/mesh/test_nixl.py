"""A mesh whose pages go by NIXL: the same tokens, connections made when workers join, and the reason for all to see."""

import asyncio
from itertools import count
from pathlib import Path as FilePath

import pytest

from runtime.domain.messages import Path
from runtime.errors import StartError, Unavailable
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh
from tests.mesh.test_local import DECODE_0, DECODE_1, PREFILL, PROMPT, Asking, asked, config, expected

NIXL = HandoffConfig(remote_min_tokens=16, transport="nixl", staging_mib=1)
_PATIENCE_S = 40
_NUMBERS = count(1)


@pytest.fixture(autouse=True)
def over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")


async def asked_until_by_nixl(mesh: LocalMesh, user: Asking) -> None:
    """Prompts that nobody has cached, until pages went to each decode worker by NIXL. Workers connect as they hear of
    each other; until then pages go by gRPC, and nobody waits."""
    receivers = {mesh.workers[name].worker.boot for name in (DECODE_0, DECODE_1)}
    async with asyncio.timeout(_PATIENCE_S):
        while receivers - {path.boot for path in paths(mesh) if path.transport == "nixl"}:
            prompt = [next(_NUMBERS), *PROMPT]
            text, final = await user.ask(prompt)
            assert text == expected(prompt)
            assert final.handoff.transport in ("nixl", "grpc")
            assert final.handoff.moved_tokens == len(prompt) - 1


def paths(mesh: LocalMesh) -> tuple[Path, ...]:
    return mesh.workers[PREFILL].transport.traffic().paths


async def test_pages_go_by_nixl_and_the_tokens_are_the_same(tmp_path: FilePath) -> None:
    async with local_mesh(config(tmp_path, handoff=NIXL)) as mesh, asked(mesh) as user:
        await asked_until_by_nixl(mesh, user)
        assert {path.reason for path in paths(mesh)} == {"both have NIXL with UCX"}
        mesh.check()


async def test_a_decode_worker_started_anew_is_connected_to_anew(tmp_path: FilePath) -> None:
    async with local_mesh(config(tmp_path, handoff=NIXL)) as mesh, asked(mesh) as user:
        await asked_until_by_nixl(mesh, user)
        await mesh.kill(DECODE_0)
        await mesh.start(DECODE_0)
        await asked_until_by_nixl(mesh, user)
        mesh.check()


async def test_a_mesh_on_one_host_alone_starts_no_nixl(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.kv.transport.nixl.ends.library", lambda: pytest.fail("it was looked for"))
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        assert (await user.ask())[1].handoff.transport == "shm"


async def test_what_is_asked_for_by_name_and_is_not_there_keeps_a_worker_from_starting(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None:
        raise Unavailable("NIXL is not installed")

    monkeypatch.setattr("runtime.kv.transport.nixl.ends.library", nothing)
    with pytest.raises(StartError, match="transport is nixl, but NIXL is not installed"):
        async with local_mesh(config(tmp_path, handoff=NIXL)):
            pass
