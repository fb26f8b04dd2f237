"""Workers of two ranks and of one hand over to each other through the mesh, and nobody sees which is which."""

from pathlib import Path

import grpc
import psutil
import pytest
import torch

from runtime.config import Config
from runtime.mesh.local import local_mesh
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama
from tests.e2e.asking import ask, request
from tests.engine.generating import generated

NEW = 24


def config_of(checkpoint: Path, state: Path, prefill_ranks: int, decode_ranks: int) -> Config:
    return Config.model_validate_json(
        f"""{{
            "mesh": {{"state": "{state}"}},
            "model": {{"path": "{checkpoint}", "name": "tested", "dtype": "float32"}},
            "engine": {{"pages": 64, "step_tokens": 64, "max_running": 8, "tensor_parallel": {prefill_ranks}}},
            "workers": [
                {{"name": "prefill", "role": "prefill", "threads": 2}},
                {{"name": "decode", "role": "decode", "threads": 2, "tensor_parallel": {decode_ranks}}}
            ],
            "handoff": {{"remote_min_tokens": 1}}
        }}"""
    )


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks"), [(2, 1), (1, 2)])
async def test_a_hand_over_between_ranks_and_one_is_token_exact(
    prefill_ranks: int, decode_ranks: int, tmp_path: Path
) -> None:
    make_llama(tmp_path / "model")
    reference = load_model(open_checkpoint(tmp_path / "model"), torch.float32, "eager")
    reference.generation_config.eos_token_id = None
    prompt = [(7 * place * place + 3) % 512 for place in range(150)]
    before = psutil.Process().children()
    config = config_of(tmp_path / "model", tmp_path, prefill_ranks, decode_ranks)
    async with local_mesh(config) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        devices = {name: running.worker.device for name, running in mesh.workers.items()}
        assert sorted(devices.values()) == ["cpu x2", "cpu x2 in 2 ranks"]
        assert len(psutil.Process().children()) == len(before) + 1
        asked = request("tested", prompt, temperature=0.0, max_tokens=NEW, ignore_eos=True)
        cold, warm = await ask(channel, asked), await ask(channel, asked)
        assert cold.tokens == warm.tokens == generated(reference, prompt, NEW)
        assert cold.final is not None
        assert cold.final.handoff.moved_tokens == len(prompt) - 1
    assert psutil.Process().children() == before
