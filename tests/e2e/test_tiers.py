"""Greedy output in fp32 is the same token by token, whether the prompt's KV was computed, or came from host memory, or
after a restart from a folder."""

import asyncio
import time
from pathlib import Path

import grpc

from runtime.config import Config
from runtime.mesh.local import local_mesh
from runtime.model.synthetic import make_llama
from tests.e2e.asking import Answer, ask, request

LENGTH, NEW, PAGE = 200, 32, 32
HELD = (LENGTH - 1) // PAGE * PAGE
ONE, OTHER = ([(seed + 7 * place) % 250 for place in range(LENGTH)] for seed in (1, 2))


def config_of(checkpoint: Path, state: Path, host_mib: int) -> Config:
    """A pool that has room for one of the prompts."""
    return Config.model_validate_json(
        f"""{{
            "mesh": {{"state": "{state}"}},
            "model": {{"path": "{checkpoint}", "name": "tested", "dtype": "float32"}},
            "engine": {{"pages": 8, "page_tokens": {PAGE}, "max_running": 1}},
            "workers": [{{"name": "decode", "role": "decode"}}],
            "kv": {{"tiers": {{"host_mib": {host_mib}, "cold": "local", "patience_s": 10}}}}
        }}"""
    )


async def greedy(channel: grpc.aio.Channel, prompt: list[int]) -> Answer:
    answer = await ask(channel, request("tested", prompt, temperature=0.0, max_tokens=NEW, ignore_eos=True))
    assert answer.final is not None
    return answer


async def written(state: Path, pages: int) -> None:
    ends = time.monotonic() + 60
    while len([file for file in (state / "kv").rglob("*-*") if file.is_file()]) < pages:
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)


async def test_the_answer_is_the_same_wherever_the_pages_were(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    state = tmp_path / "state"
    full = (LENGTH + NEW - 1) // PAGE
    async with (
        local_mesh(config_of(tmp_path / "model", state, host_mib=16)) as mesh,
        grpc.aio.insecure_channel(mesh.grpc) as channel,
    ):
        computed = await greedy(channel, ONE)
        await written(state, full)
        await greedy(channel, OTHER)
        await written(state, 2 * full)
        warm = await greedy(channel, ONE)
        mesh.check()
    async with (
        local_mesh(config_of(tmp_path / "model", state, host_mib=0)) as mesh,
        grpc.aio.insecure_channel(mesh.grpc) as channel,
    ):
        cold = await greedy(channel, ONE)
        mesh.check()
    assert len(set(computed.tokens)) > 4
    assert warm.tokens == computed.tokens
    assert cold.tokens == computed.tokens
    told = [answer.final.handoff for answer in (computed, warm, cold) if answer.final is not None]
    assert [(each.host_tokens, each.cold_tokens) for each in told] == [(0, 0), (HELD, 0), (0, HELD)]
