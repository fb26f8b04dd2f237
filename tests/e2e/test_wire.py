"""Answers over compressed pages: how often they are those of uncompressed ones, on the shipped model's questions."""

import random
from pathlib import Path

import grpc
import pytest

from runtime.config import Config
from runtime.ids import WorkerId
from runtime.mesh.local import local_mesh
from runtime.model.recall.evaluation import GreedyModel, held_out_recall
from runtime.model.recall.shipped import SHIPPED_MODEL
from tests.e2e.asking import Answer, ask, request
from tests.scale import scaled

HISTORY = 256
# Measured over 100 questions: 99 (fp8) and 100 (int8) answers are the same to the last token. `baton model eval --over`
# measures it, for more ways.
AGREEMENT = 0.9


def config_of(state: Path, wire: str) -> Config:
    return Config.model_validate_json(
        f"""{{
            "mesh": {{"state": "{state}"}},
            "model": {{"name": "tested"}},
            "engine": {{"pages": 2048, "max_running": 16}},
            "handoff": {{"remote_min_tokens": 1, "wire": "{wire}"}}
        }}"""
    )


def prompts(count: int) -> list[list[int]]:
    model = GreedyModel(SHIPPED_MODEL)
    source = random.Random(5)
    recalls = [held_out_recall(source, model.tokenizer, HISTORY) for _ in range(count)]
    return [model.tokenizer.encode(model.prompt(recall.messages), add_special_tokens=False) for recall in recalls]


async def answers(state: Path, wire: str, asked: list[list[int]]) -> tuple[list[Answer], int]:
    """And the bytes that travelled for them."""
    async with local_mesh(config_of(state, wire)) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        given = [await ask(channel, request("tested", each, temperature=0.0, max_tokens=32)) for each in asked]
        return given, sum(path.bytes for path in mesh.workers[WorkerId("prefill-0")].transport.traffic().paths)


@pytest.mark.parametrize("wire", ["fp8", "int8"])
async def test_compressed_pages_give_nearly_always_the_same_answer(tmp_path: Path, wire: str) -> None:
    asked = prompts(scaled(6, 100))
    plain, whole = await answers(tmp_path / "plain", "plain", asked)
    small, less = await answers(tmp_path / wire, wire, asked)
    assert 0.5 < less / whole < 0.55, "a byte an element instead of two, and the scales"
    same = [one.tokens == other.tokens for one, other in zip(plain, small, strict=True)]
    assert sum(same) / len(same) >= AGREEMENT
    for one, other in zip(plain, small, strict=True):
        assert one.final is not None
        assert other.final is not None
        assert one.final.handoff.moved_tokens == other.final.handoff.moved_tokens > HISTORY
