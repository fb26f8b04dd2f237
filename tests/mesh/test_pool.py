"""Workers that are not told how large their pools are look at what is free: whether they fit, and what they serve."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig, WorkerConfig
from runtime.domain.batching import Limits
from runtime.domain.pool_size import Room
from runtime.engine.native import NativeSettings, build_native
from runtime.errors import ConfigError
from runtime.ids import WorkerId
from runtime.mesh import engines
from runtime.mesh.local import local_mesh
from runtime.mesh.pool import expected_room, pool_pages, pool_size, sharing_of
from runtime.model.recall.shipped import SHIPPED_MODEL

CONTEXT, PAGE, RUNNING = 512, 8, 16
PAGE_BYTES = 8 * PAGE
LEAST, MOST = CONTEXT // PAGE, RUNNING * CONTEXT // PAGE
WORKERS = 3
DECODE_0, DECODE_1 = WorkerId("decode-0"), WorkerId("decode-1")


def config(state: Path | None = None, **engine: object) -> Config:
    """A simulated mesh of one worker that prefills and two that decode, with pages of 64 bytes."""
    return Config(
        mesh=MeshConfig(name="test", state=state),
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=CONTEXT, base_ms=1.0)),
        engine=EngineConfig.model_validate({"page_tokens": PAGE, "max_running": RUNNING} | engine),
    )


def of_share(pages: int) -> int:
    """Free bytes of which each worker's half share holds so many pages."""
    return 2 * WORKERS * (pages + 1) * PAGE_BYTES


async def asked(address: str, prompt: int, tokens: int, begun: asyncio.Event | None = None) -> int:
    """How many tokens came; `begun` is set at the first. Raises `grpc.aio.AioRpcError`."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = inference_pb2.GenerateRequest(
            model="simulated",
            prompt=inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=[7] * prompt)),
            sampling=common_pb2.Sampling(max_tokens=tokens, temperature=0, ignore_eos=True),
        )
        final = inference_pb2.Final()
        async for message in inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=30):
            if begun is not None and message.events:
                begun.set()
            final = message.final if message.HasField("final") else final
        return final.usage.completion_tokens


async def test_workers_take_their_part_and_one_that_finds_less_serves_the_same_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = of_share(300)
    monkeypatch.setattr(engines, "free_bytes", lambda: free)
    async with local_mesh(config(tmp_path)) as mesh:
        sizes = {name: running.engine.load().pages.free for name, running in mesh.workers.items()}
        assert sizes == {"prefill-0": 300, "decode-0": 300, "decode-1": 300}
        await mesh.stop(DECODE_0)
        free = of_share(20)  # the others have theirs: for this one the least is left
        again = await mesh.start(DECODE_0)
        assert again.engine.load().pages.free == LEAST
        assert again.worker.max_tokens == CONTEXT == mesh.workers[DECODE_1].worker.max_tokens
        assert await asked(mesh.grpc, CONTEXT - 30, 30) == 30
        with pytest.raises(grpc.aio.AioRpcError, match=f"more than the model's context of {CONTEXT} tokens"):
            await asked(mesh.grpc, CONTEXT - 30, 31)
        # Whichever of the two decodes it: the other one takes over the whole of a context.
        async with asyncio.TaskGroup() as group:
            begun = asyncio.Event()
            answer = group.create_task(asked(mesh.grpc, 30, CONTEXT - 30, begun))
            await begun.wait()
            (busy,) = [name for name, running in mesh.workers.items() if running.engine.load().running]
            await mesh.kill(busy)
        assert answer.result() == CONTEXT - 30
        mesh.check()


async def test_no_room_for_the_least_is_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = (LEAST + 1) * PAGE_BYTES
    monkeypatch.setattr(engines, "free_bytes", lambda: needed - 1)
    with pytest.raises(ConfigError, match=r"engine\.kv_memory_share: .* the least for one context of 512 tokens") as no:
        await local_mesh(config(tmp_path)).__aenter__()
    assert "engine.max_running, which is 16" in str(no.value)
    assert "engine.kv_mib can make the pool smaller" in str(no.value)
    monkeypatch.setattr(engines, "free_bytes", lambda: needed)
    async with local_mesh(config(tmp_path)) as mesh:
        assert {running.engine.load().pages.free for running in mesh.workers.values()} == {LEAST}


def test_a_pool_of_a_given_size_is_that_whatever_is_free() -> None:
    worker = Config().workers[0]
    for free in (0, 1 << 40):
        room = Room(free, 0, 1 << 20, PAGE, CONTEXT)
        assert pool_size(config(kv_mib=256), worker, room).pages == 256
        assert pool_size(config(kv_mib=256, pages=20), worker, room).pages == 20
        with pytest.raises(ConfigError, match=r"engine\.kv_mib: makes 15 pages of 1048576 bytes"):
            pool_size(config(kv_mib=15), worker, room)


def test_a_gpu_is_the_worker_s_own_and_a_host_is_that_of_all_workers_on_it() -> None:
    on_gpu, on_host = (
        WorkerConfig(name="p", role="prefill", device="cuda", count=4),
        WorkerConfig(name="d", role="decode", count=5),
    )
    mixed = Config(workers=(on_gpu, on_host, WorkerConfig(name="e", role="decode", count=2)))
    assert (sharing_of(mixed, on_gpu).share, sharing_of(mixed, on_gpu).workers) == (0.8, 1)
    assert (sharing_of(mixed, on_host).share, sharing_of(mixed, on_host).workers) == (0.5, 7)
    named = mixed.model_copy(update={"engine": EngineConfig(kv_memory_share=0.25)})
    assert {sharing_of(named, worker).share for worker in named.workers} == {0.25}


def test_what_is_expected_without_reading_weights_is_what_a_worker_finds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runtime.mesh.pool")
    local, found = Config(), list[Room]()
    worker = local.workers[0]

    def pages(room: Room) -> int:
        found.append(room)
        return pool_pages(local, worker, room)

    settings = NativeSettings("recall", SHIPPED_MODEL, "bfloat16", local.engine.page_tokens, 1)
    free = 1 << 30
    core = build_native(settings, Limits(512, local.engine.max_running), pages, lambda: free)
    assert found == [expected_room(local, worker, free)]
    # A third of 1 GiB less the weights, halved; less than the 4096 pages of 32 contexts.
    part = free // 3 - found[0].weights
    assert core.load().pages.free == part // 2 // found[0].page_bytes - 1
    assert caplog.messages == [f"KV pool: {pool_size(local, worker, found[0]).account}"]
    assert pool_size(local, worker, replace(found[0], free=1 << 36)).pages == 32 * 128
    core.close()
