"""A real mesh places turns by what its workers were measured to take, and by what they hold."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.config import (
    Config,
    EngineConfig,
    GatewayConfig,
    MeshConfig,
    ModelConfig,
    SimulatedConfig,
    TimingConfig,
    WorkerConfig,
)
from runtime.mesh.local import LocalMesh, local_mesh

PROMPT = "The same long beginning. " * 40


def config(state: Path, prefill: int = 1, **gateway: Any) -> Config:  # noqa: ANN401 - as pydantic has them
    return Config(
        mesh=MeshConfig(name="placing", state=state),
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=8192, base_ms=1.0, token_ms=0.1)),
        engine=EngineConfig(pages=1024, page_tokens=16, itl_ms=None),
        workers=(
            *((WorkerConfig(name="prefill", role="prefill", count=prefill),) if prefill else ()),
            WorkerConfig(name="decode", role="decode", count=3),
        ),
        gateway=GatewayConfig(**gateway),
        timing=TimingConfig(lease_s=1.0),
    )


async def completed(mesh: LocalMesh, prompt: str) -> dict[str, Any]:
    """What the gateway tells of an answer beyond OpenAI's shape."""
    async with httpx.AsyncClient(base_url=mesh.http, timeout=20) as http:
        answer = await http.post("/v1/completions", json={"model": "simulated", "prompt": prompt, "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()["baton"]
    return told


async def until(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come true")


async def measured(mesh: LocalMesh) -> None:
    """Until the gateway was told how fast somebody decodes and prefills."""
    for number in range(6):
        await completed(mesh, f"{number} {PROMPT}")
    view = mesh.gateway.role.view
    await until(lambda: any(worker.profile.decode for worker in view().workers))
    await until(lambda: any(worker.profile.prefill for worker in view().workers))


async def test_a_prompt_goes_where_its_beginning_is_and_the_answer_says_why(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path), http_port=0) as mesh:
        await measured(mesh)
        first = await completed(mesh, "A" + PROMPT)
        await asyncio.sleep(0.6)
        again = [await completed(mesh, "A" + PROMPT + f"And then {number}.") for number in range(6)]
        places = {told["route"]["worker"] for told in again}
        assert places == {first["route"]["worker"]}
        assert all(told["route"]["held"] >= len(PROMPT) - 16 for told in again)
        assert all(told["handoff"]["cached_tokens"] >= len(PROMPT) - 16 for told in again)
        assert again[0]["route"]["total_ms"] < first["route"]["total_ms"]


async def test_profiles_are_those_of_the_engines(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path, prefill=0), http_port=0) as mesh:
        await measured(mesh)
        for worker in mesh.gateway.role.view().workers:
            if worker.profile.prefill:
                tokens, ms = worker.profile.prefill[0]
                assert ms / tokens == pytest.approx(0.1, rel=0.15)
            for batch, ms in worker.profile.decode:
                assert ms == pytest.approx(1.0 + 0.1 * batch, rel=0.15)


async def test_with_another_placement_nothing_is_weighed(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path, placement="round_robin"), http_port=0) as mesh:
        told = [await completed(mesh, PROMPT) for _ in range(3)]
        assert [each["route"] for each in told] == [None] * 3
