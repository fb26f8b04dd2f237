"""Workers that have nothing in common hand over to each other: ranks, layouts, blocks and data types."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch

from runtime.config import Config
from runtime.errors import ConfigError, StartError
from runtime.ids import WorkerId
from runtime.mesh.local import local_mesh
from runtime.mesh.models import check_model
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama
from tests.e2e.asking import ask, request
from tests.engine.generating import generated

NEW = 24
PROMPT = [(7 * place * place + 3) % 512 for place in range(150)]
NEURON = '"device": "neuron", "neuron": {"stand_in": true, "buckets": [{"tokens": 64, "past_pages": 8}]}'


def config_of(checkpoint: Path, state: Path, prefill: str, decode: str, handoff: str = "") -> Config:
    """Each worker's part of the configuration, after its name and role."""
    return Config.model_validate_json(
        f"""{{
            "mesh": {{"state": "{state}"}},
            "model": {{"path": "{checkpoint}", "name": "tested", "dtype": "float32"}},
            "engine": {{"pages": 64, "step_tokens": 64, "max_running": 8}},
            "workers": [
                {{"name": "prefill", "role": "prefill", "threads": 2, {prefill}}},
                {{"name": "decode", "role": "decode", "threads": 2, {decode}}}
            ],
            "handoff": {{"remote_min_tokens": 1{handoff}}}
        }}"""
    )


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (
            '"tensor_parallel": 2, "kv": {"layout": "vllm_neuron", "block_tokens": 16}',
            '"kv": {"layout": "vllm_cuda", "block_tokens": 128}',
        ),
        (NEURON, '"tensor_parallel": 2, "kv": {"layout": "nxdi_transposed", "block_tokens": 256}'),
        ('"kv": {"layout": "nxdi_prefix", "block_tokens": 24}', '"tensor_parallel": 2'),
    ],
    ids=["ranks to none", "neuron to ranks", "blocks across pages"],
)
async def test_a_mesh_of_unlike_engines_is_token_exact(prefill: str, decode: str, tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    reference = load_model(open_checkpoint(tmp_path / "model"), torch.float32, "eager")
    reference.generation_config.eos_token_id = None
    config = config_of(tmp_path / "model", tmp_path, prefill, decode)
    async with local_mesh(config) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        asked = request("tested", PROMPT, temperature=0.0, max_tokens=NEW, ignore_eos=True)
        cold, warm = await ask(channel, asked), await ask(channel, asked)
        assert cold.tokens == warm.tokens == generated(reference, PROMPT, NEW)
        assert cold.final is not None
        assert cold.final.handoff.moved_tokens == len(PROMPT) - 1


async def test_pages_that_travel_layer_by_layer_are_token_exact(tmp_path: Path) -> None:
    """From an engine that tells of its layers, and from one that brings whole pages."""
    make_llama(tmp_path / "model")
    reference = load_model(open_checkpoint(tmp_path / "model"), torch.float32, "eager")
    reference.generation_config.eos_token_id = None
    for number, prefill in enumerate(('"kv": {}', '"tensor_parallel": 2')):
        config = config_of(tmp_path / "model", tmp_path / str(number), prefill, '"kv": {}', ', "layer_groups": 2')
        async with local_mesh(config) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
            asked = request("tested", PROMPT, temperature=0.0, max_tokens=NEW, ignore_eos=True)
            answer = await ask(channel, asked)
            assert answer.tokens == generated(reference, PROMPT, NEW)
            assert answer.final is not None
            assert answer.final.handoff.moved_tokens == len(PROMPT) - 1
            assert answer.final.handoff.moved_pages == -(-(len(PROMPT) - 1) // 32)
            assert {len(worker.pages.groups) for worker in mesh.controller.role.view().workers} == {2}


BFLOAT16, FLOAT32 = '"kv": {"dtype": "bfloat16"}', '"kv": {"dtype": "float32"}'


@pytest.mark.parametrize(("prefill", "decode"), [(BFLOAT16, FLOAT32), (FLOAT32, BFLOAT16)])
async def test_pages_of_another_data_type_are_rounded_where_the_mesh_says_so(
    prefill: str, decode: str, tmp_path: Path
) -> None:
    make_llama(tmp_path / "model")
    taken = ', "dtypes": ["float32", "bfloat16"]'
    config = config_of(tmp_path / "model", tmp_path, prefill, decode, taken)
    check_model(config)
    async with local_mesh(config) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        answer = await ask(channel, request("tested", PROMPT, temperature=0.0, max_tokens=NEW, ignore_eos=True))
        assert answer.final is not None
        assert answer.final.handoff.moved_tokens == len(PROMPT) - 1
        sender = mesh.workers[WorkerId("prefill-0")]
        spec = replace(sender.engine.spec, dtype="bfloat16")
        assert sum(path.bytes for path in sender.transport.traffic().paths) == spec.token_bytes * (len(PROMPT) - 1)
        dtypes = {worker.role: worker.pages.dtype for worker in mesh.controller.role.view().workers}
        assert set(dtypes.values()) == {"float32", "bfloat16"}


async def test_pages_of_another_data_type_are_refused_by_name_where_the_mesh_does_not_say_so(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    config = config_of(tmp_path / "model", tmp_path, BFLOAT16, FLOAT32)
    with pytest.raises(ConfigError, match=r"workers\.prefill\.kv\.dtype.*handoff\.dtypes"):
        check_model(config)
    with pytest.raises(StartError, match=r"pages\.dtype: prefill-0 prefills in bfloat16, and decode-0 takes float32"):
        await local_mesh(config).__aenter__()
