"""Greedy output through the split path is that of transformers' own generate, token by token, in fp32."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from runtime.config import Config
from runtime.mesh.local import local_mesh
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.synthetic import make_llama, make_qwen
from tests.e2e.asking import Answer, ask, request

LENGTHS = (1, 31, 32, 33, 500, 2000)
NEW = 64
KINDS = ("llama", "qwen3", "shipped")


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "shipped":
        return SHIPPED_MODEL
    path = tmp_path_factory.mktemp("checkpoint") / str(request.param)
    if request.param == "llama":
        make_llama(path)
    else:
        make_qwen(path)
    return path


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    return model.eval()  # type: ignore[no-any-return]


def config_of(checkpoint: Path, state: Path, remote_min_tokens: int) -> Config:
    return Config.model_validate_json(
        f"""{{
            "mesh": {{"state": "{state}"}},
            "model": {{"path": "{checkpoint}", "name": "tested", "dtype": "float32"}},
            "engine": {{"pages": 2048, "step_tokens": 256, "max_running": 16}},
            "handoff": {{"remote_min_tokens": {remote_min_tokens}}}
        }}"""
    )


@pytest.fixture
async def split(checkpoint: Path, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A mesh in which every prompt of more than one token is prefilled remotely."""
    async with local_mesh(config_of(checkpoint, tmp_path, 1)) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        yield channel


def make_prompt(model: PreTrainedModel, length: int, seed: int) -> list[int]:
    source = random.Random(seed * 10_000 + length)
    return [source.randrange(model.config.vocab_size) for _ in range(length)]


async def expected(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """On another thread: the mesh that is compared shares this one's event loop."""
    return await asyncio.to_thread(_generate, model, prompt)


def _generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]  # transformers' types lose it
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token) for token in output[0, len(prompt) :]]


async def greedy(channel: grpc.aio.Channel, prompt: list[int]) -> Answer:
    return await ask(channel, request("tested", prompt, temperature=0.0, max_tokens=NEW, ignore_eos=True))


async def test_one_request_at_a_time_cold_and_warm(split: grpc.aio.Channel, reference: PreTrainedModel) -> None:
    distinct: set[int] = set()
    for length in LENGTHS:
        prompt = make_prompt(reference, length, seed=1)
        wanted = await expected(reference, prompt)
        distinct |= set(wanted)
        cold, warm = await greedy(split, prompt), await greedy(split, prompt)
        assert cold.tokens == wanted
        assert warm.tokens == wanted
        assert cold.final is not None
        assert cold.final.handoff.moved_tokens == length - 1
        assert warm.final is not None
        assert warm.final.handoff.cached_tokens + warm.final.handoff.prefill_cached_tokens >= (length - 1) // 32 * 32
    assert len(distinct) >= 16


async def test_sixteen_requests_at_a_time_cold_and_warm(split: grpc.aio.Channel, reference: PreTrainedModel) -> None:
    prompts = [make_prompt(reference, LENGTHS[number % len(LENGTHS)], seed=2 + number) for number in range(16)]
    wanted = [await expected(reference, prompt) for prompt in prompts]
    for _ in ("cold", "warm"):
        answers = await asyncio.gather(*(greedy(split, prompt) for prompt in prompts))
        assert [answer.tokens for answer in answers] == wanted


async def test_seeded_sampling_is_the_same_in_any_batch_and_for_local_and_remote_prefill(
    checkpoint: Path, split: grpc.aio.Channel, reference: PreTrainedModel, tmp_path: Path
) -> None:
    prompts = [make_prompt(reference, length, seed=30) for length in (1, 33, 100, 500)]
    wanted = [
        request("tested", prompt, temperature=0.9, top_p=0.95, top_k=40, seed=7, max_tokens=32, ignore_eos=True)
        for prompt in prompts
    ]
    alone = [(await ask(split, one)).tokens for one in wanted]
    together = [answer.tokens for answer in await asyncio.gather(*(ask(split, one) for one in wanted * 4))]
    assert together == alone * 4
    config = config_of(checkpoint, tmp_path / "local", 10**6)
    async with local_mesh(config) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        local = [await ask(channel, one) for one in wanted]
    assert [answer.tokens for answer in local] == alone
    assert all(answer.final is not None and answer.final.handoff.moved_tokens == 0 for answer in local)
    assert len({token for tokens in alone for token in tokens}) >= 16
