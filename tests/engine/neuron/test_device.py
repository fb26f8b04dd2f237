"""On a machine with a Neuron device: the same graphs through the vendor's compiler, held to the same answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.domain.spec import ModelSpec
from runtime.engine.neuron.attention import STATIC_ATTENTION
from runtime.engine.neuron.buckets import Bucket, Buckets
from runtime.engine.neuron.build import open_neuron
from runtime.engine.neuron.forward import Forward
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.preflight import Surroundings, check_neuron, devices
from runtime.engine.neuron.runner import NeuronRunner, Warmed
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec
from tests.engine.neuron.conftest import PAGE, PAGES
from tests.engine.neuron.test_runner import chunks_of, prompt

pytestmark = [
    pytest.mark.neuron,
    pytest.mark.skipif(not devices(Surroundings()), reason="there is no /dev/neuron0"),
]
BUCKETS = (Bucket(16, 0), Bucket(32, 20))
# The device's own float32 matrix products are coarser than the CPU's.
TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def on_device(checkpoint: Callable[[str], Path]) -> tuple[NeuronRunner, ModelSpec, list[Warmed]]:
    check_neuron("torch", None, Surroundings())
    source = open_checkpoint(checkpoint("llama"))
    spec = checkpoint_spec(source, name="tiny", dtype="float32", page_tokens=PAGE)
    device = open_neuron("torch", None)
    model = load_model(source, torch.float32, STATIC_ATTENTION)
    model.to(device.name)  # type: ignore[arg-type]  # as in build.py
    kv = NeuronKV(spec, PAGES, device)
    runner = NeuronRunner(Forward(model, kv.tensors), kv, Buckets(BUCKETS, PAGE), device)
    warmed: list[Warmed] = []
    runner.warm(warmed.append)
    return runner, spec, warmed


def test_every_bucket_compiles(on_device: tuple[NeuronRunner, ModelSpec, list[Warmed]]) -> None:
    assert [each.bucket for each in on_device[2]] == list(BUCKETS)


@pytest.mark.parametrize("sizes", [(1,), (16,), (17,), (33, 1, 1), (100, 40)])
def test_logits_are_those_of_dense_attention(
    sizes: tuple[int, ...],
    on_device: tuple[NeuronRunner, ModelSpec, list[Warmed]],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    tokens = prompt(sum(sizes))
    with torch.inference_mode():
        expected = reference("llama")(torch.tensor([tokens])).logits[0]
    for chunk in chunks_of(tokens, sizes):
        (logits,) = on_device[0].forward((chunk,))
        row = expected[chunk.start + len(chunk.tokens) - 1]
        torch.testing.assert_close(logits, row, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_page_that_entered_leaves_bit_for_bit(
    on_device: tuple[NeuronRunner, ModelSpec, list[Warmed]],
) -> None:
    runner, spec, _ = on_device
    payload = torch.randn(spec.page_bytes // 4, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    for page in (3, 4, 9):
        runner.kv.write_page(page, payload, PAGE)
    assert runner.kv.read_pages([(3, PAGE), (4, PAGE), (9, PAGE)]) == [payload] * 3
