"""What is kept behind the pools outlives them, and whatever befalls it no client sees more than a later token."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batonmesh import AsyncClient
from batonmesh.v1 import mesh_pb2
from runtime.config import Config, EngineConfig, WorkerConfig
from runtime.errors import StartError
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.tiering import LOCAL, KvKeepingConfig, TiersConfig
from runtime.wire.routing import unpack_explained
from tests.mesh.test_local import DECODE_0, PROMPT, TOKENS, Asking, asked, config, expected

DECODE = WorkerConfig(name="decode", role="decode")
PREFILL = WorkerConfig(name="prefill", role="prefill")
PAGE = 8
STORED = (len(PROMPT) - 1) // PAGE * PAGE
OTHER = list(b"Something else altogether, which is as long as what was asked before, or so.")


def kept(state: Path, *workers: WorkerConfig, pages: int = 256, **tiers: object) -> Config:
    """A small mesh that keeps pages in its state."""
    settings = TiersConfig.model_validate({"cold": LOCAL, "least_tokens": 16, "patience_s": 5.0} | tiers)
    engine = EngineConfig(pages=pages, page_tokens=PAGE, step_tokens=32, max_running=8)
    return config(state, workers=workers or (DECODE,), kv=KvKeepingConfig(tiers=settings), engine=engine)


def files(state: Path) -> list[Path]:
    return sorted(file for file in (state / "kv").rglob("*-*") if file.is_file())


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "it did not come true"
        await asyncio.sleep(0.02)


async def written(state: Path, tokens: int) -> None:
    await until(lambda: len(files(state)) >= tokens // PAGE)


async def tiers_of(mesh: LocalMesh, user: Asking, worker: str, told: Callable[[mesh_pb2.Tier], bool]) -> None:
    """Wait until a worker tells of its only tier what is wanted."""
    for _ in range(600):
        running = (await user.workers()).get(worker)
        if running is not None and running.tiers and told(running.tiers[0]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it was not told: {await user.workers()}")


async def test_after_a_restart_a_known_prompt_is_loaded_and_not_computed(tmp_path: Path) -> None:
    settings = kept(tmp_path)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), 0)
        await written(tmp_path, STORED + TOKENS)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        text, final = await user.ask()
        assert text == expected()
        assert (final.handoff.cold_tokens, final.handoff.cached_tokens) == (STORED, 0)
        assert final.usage.cached_tokens == STORED, "nobody computed it"
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), 0)
        assert final.handoff.cached_tokens == STORED, "it is in the pool now"
        mesh.check()


async def test_what_the_pool_evicted_comes_back_from_host_memory(tmp_path: Path) -> None:
    async with local_mesh(kept(tmp_path, pages=20, cold=None, host_mib=1)) as mesh, asked(mesh) as user:
        await user.ask()
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        await user.ask(OTHER)
        text, final = await user.ask()
        assert text == expected()
        assert final.handoff.host_tokens > 0
        assert final.handoff.host_tokens + final.handoff.cached_tokens == STORED
        mesh.check()


async def test_the_gateway_reckons_with_what_is_in_host_memory_and_in_the_store(tmp_path: Path) -> None:
    async def explained(client: AsyncClient, tier: str) -> None:
        async with asyncio.timeout(30):
            while True:
                said = unpack_explained(await client.explain_route("simulated", PROMPT, max_tokens=4, timeout=10))
                if said.costs and said.costs[0].load_tier == tier:
                    break
                await asyncio.sleep(0.05)
        assert said.costs[0].load_ms > 0
        assert said.costs[0].held < STORED

    async with local_mesh(kept(tmp_path, pages=20, host_mib=1)) as mesh, asked(mesh) as user:
        await user.ask()
        await written(tmp_path, STORED)
        await user.ask(OTHER)
        async with AsyncClient(mesh.grpc) as client:
            await explained(client, "host")
    async with local_mesh(kept(tmp_path)) as mesh, asked(mesh) as user:
        await user.ask(OTHER[::-1])
        async with AsyncClient(mesh.grpc) as client:
            await explained(client, "cold")


async def test_a_prefill_worker_goes_on_where_the_store_ends(tmp_path: Path) -> None:
    settings = kept(tmp_path, PREFILL, DECODE)
    longer = PROMPT + OTHER
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await user.ask()
        await written(tmp_path, STORED)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        for worker in ("decode-0", "prefill-0"):
            await tiers_of(mesh, user, worker, lambda tier: tier.pages >= STORED // PAGE)
        text, final = await user.ask(longer)
        assert text == expected(longer)
        assert final.handoff.cold_tokens == STORED
        assert final.handoff.moved_tokens == len(longer) - 1 - STORED
        assert final.handoff.prefill_cached_tokens == STORED, "nor was it computed there"
        mesh.check()


@pytest.mark.parametrize("spoil", ["flipped", "truncated", "removed"])
async def test_pages_that_were_spoilt_are_computed_and_counted(tmp_path: Path, spoil: str) -> None:
    settings = kept(tmp_path)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await user.ask()
        await written(tmp_path, STORED)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        for file in files(tmp_path):
            content = file.read_bytes()
            if spoil == "removed":
                file.unlink()
            else:
                file.write_bytes(content[:-9] if spoil == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), 0)
        if spoil != "removed":
            await tiers_of(mesh, user, DECODE_0, lambda tier: tier.failures["corrupt seal"] > 0)
        mesh.check()


async def test_a_store_that_takes_nothing_any_more_costs_no_request(tmp_path: Path) -> None:
    async with local_mesh(kept(tmp_path)) as mesh, asked(mesh) as user:
        await user.ask(OTHER)
        (tmp_path / "kv").rename(tmp_path / "gone")
        (tmp_path / "kv").write_text("nothing can be written here")
        assert (await user.ask())[0] == expected()
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.failures["writing"] > 0 and bool(tier.trouble))
        assert (await user.ask())[0] == expected()
        mesh.check()


async def test_a_worker_without_tiers_tells_of_none(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        assert not any(worker.tiers for worker in (await user.workers()).values())
        assert not (tmp_path / "kv").exists()


async def test_a_place_that_can_be_no_store_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match=r"kv\.tiers\.cold"):
        async with local_mesh(kept(tmp_path / "state", cold=str(tmp_path / "file" / "store"))):
            pass
