"""The mesh of configs/trainium.yaml: with the stand-in when told so, and not at all without a device otherwise."""

import random
from pathlib import Path

import grpc
import pytest
import torch
from transformers import PreTrainedModel

from runtime.config import Config, load_config
from runtime.errors import StartError
from runtime.mesh.engines import check_devices
from runtime.mesh.local import local_mesh
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama
from runtime.on_neuron import BucketConfig, NeuronConfig
from tests.e2e.asking import Answer, ask, request
from tests.engine.generating import generated

SHIPPED = load_config(Path(__file__).resolve().parents[2] / "configs" / "trainium.yaml")
NO_DEVICE = r"device neuron: there is no /dev/neuron0.*`stand_in: true` under `neuron`"
NEW = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "llama"
    make_llama(path)
    return path


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> PreTrainedModel:
    model = load_model(open_checkpoint(checkpoint), torch.float32, "eager")
    model.generation_config.eos_token_id = None
    return model


def small(checkpoint: Path, state: Path, *, stand_in: bool) -> Config:
    """The shipped configuration over a tiny model and with one bucket, of 256 tokens in all."""
    prefill, decode = SHIPPED.workers
    assert (prefill.device, decode.device) == ("neuron", "cpu")
    on_neuron = NeuronConfig(buckets=(BucketConfig(tokens=64, past_pages=8),), stand_in=stand_in)
    changed = {
        "mesh": SHIPPED.mesh.model_copy(update={"state": state}),
        "model": SHIPPED.model.model_copy(update={"path": str(checkpoint), "name": "tested", "dtype": "float32"}),
        "engine": SHIPPED.engine.model_copy(update={"pages": 64}),
        "workers": (
            prefill.model_copy(update={"neuron": on_neuron}),
            decode.model_copy(update={"count": 1}),
        ),
    }
    return SHIPPED.model_copy(update=changed)


async def greedy(channel: grpc.aio.Channel, prompt: list[int]) -> Answer:
    return await ask(channel, request("tested", prompt, temperature=0.0, max_tokens=NEW, ignore_eos=True))


async def test_the_stand_in_prefills_for_the_cpu_token_by_token(
    checkpoint: Path, reference: PreTrainedModel, tmp_path: Path
) -> None:
    source = random.Random(0)
    fits, too_long = ([source.randrange(512) for _ in range(size)] for size in (200, 300))
    async with (
        local_mesh(small(checkpoint, tmp_path, stand_in=True)) as mesh,
        grpc.aio.insecure_channel(mesh.grpc) as channel,
    ):
        devices = {name: running.worker.device for name, running in mesh.workers.items()}
        assert devices == {"prefill-0": "cpu x1 for neuron", "decode-0": "cpu x1"}
        answer = await greedy(channel, fits)
        assert answer.tokens == generated(reference, fits, NEW)
        assert answer.final is not None
        assert answer.final.handoff.prefill_worker == "prefill-0"
        assert answer.final.handoff.moved_tokens == len(fits) - 1
        # No bucket reaches that far: the decode worker computes it itself.
        answer = await greedy(channel, too_long)
        assert answer.tokens == generated(reference, too_long, NEW)
        assert answer.final is not None
        assert answer.final.handoff.moved_tokens == 0
        mesh.check()


@pytest.mark.skipif(Path("/dev/neuron0").exists(), reason="there is a Neuron device")
async def test_without_a_device_and_not_told_otherwise_the_mesh_says_so_and_does_not_start(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert not any(worker.neuron is not None and worker.neuron.stand_in for worker in SHIPPED.workers)
    with pytest.raises(StartError, match=NO_DEVICE):
        await local_mesh(small(checkpoint, tmp_path, stand_in=False)).__aenter__()
    with pytest.raises(StartError, match=NO_DEVICE):
        check_devices(SHIPPED)


def test_a_stand_in_needs_no_device(checkpoint: Path, tmp_path: Path) -> None:
    check_devices(small(checkpoint, tmp_path, stand_in=True))
