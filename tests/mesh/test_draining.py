"""A worker that is drained takes nothing new, loses nothing that runs, and is gone: by real gRPC."""

import asyncio
from pathlib import Path

import pytest

from batonmesh import AsyncClient, FailedPrecondition, InvalidArgument, NotFound
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig, TimingConfig
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedDecoder, continuation
from runtime.ids import WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.roles.belonging import was_drained

DECODE = WorkerId("decode-0")
PREFILL = WorkerId("prefill-0")
LEFT = WorkerId("decode-1")
PROMPT = list(b"A prompt of the usual kind, of more than sixteen tokens.")


def config(state: Path, step_ms: float = 0.0) -> Config:
    return Config(
        mesh=MeshConfig(name="draining", state=state),
        model=ModelConfig(name="simulated", simulated=SimulatedConfig(base_ms=step_ms)),
        engine=EngineConfig(pages=256, page_tokens=8),
        handoff=HandoffConfig(remote_min_tokens=16),
        timing=TimingConfig(lease_s=2.0),
    )


async def gone(mesh: LocalMesh, worker: WorkerId) -> None:
    """Wait until its process has ended because it was drained."""
    async with asyncio.timeout(20):
        with pytest.raises(ExceptionGroup) as ended:
            await mesh._residents[worker].ended()
    assert was_drained(ended.value)
    await mesh.stop(worker)


def expected(tokens: int) -> str:
    """The answer of an unharmed mesh."""
    decoder = SimulatedDecoder()
    return "".join(decoder.push(token) for token in continuation(PROMPT, Sampling(max_tokens=tokens)))


async def drained(client: AsyncClient, worker: WorkerId, grace: float) -> None:
    """Ask for it, and wait until the gateway knows."""
    await client.drain(worker, grace)
    async with asyncio.timeout(5):
        while not any(each.id == worker and each.draining for each in (await client.topology()).workers):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def text_of(client: AsyncClient, tokens: int = 40) -> tuple[str, int]:
    answer = await client.complete("simulated", PROMPT, max_tokens=tokens, temperature=0, timeout=30)
    assert answer.final.usage.completion_tokens == tokens
    return answer.text, answer.final.attempts


async def test_what_runs_ends_where_it_is_and_what_comes_goes_elsewhere(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path, step_ms=10)) as mesh, AsyncClient(mesh.grpc) as client:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(text_of(client)) for _ in range(4)]
            while not all(mesh.workers[name].engine.load().running for name in (DECODE, LEFT)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            before = mesh.workers[LEFT].engine.load().running
            await drained(client, DECODE, 20)
            later = [group.create_task(text_of(client)) for _ in range(3)]
            while mesh.workers[LEFT].engine.load().running < before + 3:
                assert mesh.workers[DECODE].engine.load().running <= 2, "nothing new is placed on it"
                await asyncio.sleep(0.005)
            await gone(mesh, DECODE)
        assert {task.result() for task in (*running, *later)} == {(expected(40), 1)}, "nothing had to be tried again"
        async with asyncio.timeout(5):
            while DECODE in {worker.id for worker in (await client.topology(timeout=5)).workers}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        mesh.check()


async def test_what_does_not_end_in_time_goes_on_elsewhere_without_a_gap(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path, step_ms=20)) as mesh, AsyncClient(mesh.grpc) as client:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(text_of(client, 250)) for _ in range(4)]
            while mesh.workers[DECODE].engine.load().running < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await drained(client, DECODE, 0.2)
            await gone(mesh, DECODE)
            await mesh.start(DECODE)
            await drained(client, LEFT, 0.2)
            await gone(mesh, LEFT)
            assert not any(task.done() for task in running)
        texts, attempts = zip(*(task.result() for task in running), strict=True)
        assert set(texts) == {expected(250)}
        assert (min(attempts), max(attempts)) >= (2, 3), "that a worker leaves is no crash, and two would be too many"
        mesh.check()


async def test_a_prefill_worker_leaves_and_decode_workers_prefill_themselves(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, AsyncClient(mesh.grpc) as client:
        await client.drain(PREFILL, 5)
        await gone(mesh, PREFILL)
        answer = await client.complete("simulated", PROMPT, max_tokens=4, timeout=10)
        assert answer.final.handoff.moved_tokens == 0


async def test_who_cannot_be_drained_is_told_by_the_controller_through_the_gateway(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, AsyncClient(mesh.grpc) as client:
        with pytest.raises(NotFound, match="no worker decode-9 serves"):
            await client.drain("decode-9", 1)
        with pytest.raises(InvalidArgument, match="a day is the most"):
            await client.drain(DECODE, 86_401)
        await client.drain(DECODE, 5)
        with pytest.raises(FailedPrecondition, match="decode-1 is the last decode worker"):
            await client.drain(LEFT, 5)
        await gone(mesh, DECODE)
        again = await mesh.start(DECODE)
        assert not again.worker.draining
        await client.drain(LEFT, 5)
        await gone(mesh, LEFT)
        assert (await text_of(client))[1] == 1
