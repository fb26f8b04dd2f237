"""Pages leave a device in the canonical layout, one copy a layer and run, and enter it bit for bit."""

import pytest
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.kv_tensors import DTYPES, KVTensors
from runtime.engine.neuron.device import Launch
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.stand_in import StandIn

LAYERS, PAGE_TOKENS, KV_HEADS, HEAD_DIM, PAGES = 3, 4, 2, 8, 6


class Watched(StandIn):
    """A device that tells when it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def compile(self, function: Launch) -> Launch:
        raise AssertionError("nothing is compiled here")

    def synchronize(self) -> None:
        self.waits += 1


def spec_of(dtype: str = "float32") -> ModelSpec:
    return ModelSpec("tiny", LAYERS, KV_HEADS, HEAD_DIM, dtype, 16, 64, PAGE_TOKENS, "", "")


def filled(dtype: str = "float32", copies: int = 1) -> tuple[NeuronKV, KVTensors, Watched]:
    """The same random pages on a device and in the pool of the CPU."""
    spec, device = spec_of(dtype), Watched()
    here, there = KVTensors(spec, PAGES), NeuronKV(spec, PAGES, device, copies)
    source = torch.Generator().manual_seed(0)
    for page in range(PAGES):
        content = torch.randn(LAYERS, 2, PAGE_TOKENS, KV_HEADS, HEAD_DIM, generator=source).to(here.dtype)
        here.write_page(page, content.view(torch.uint8).numpy().tobytes(), PAGE_TOKENS)
        slots = slice((page + 1) * PAGE_TOKENS, (page + 2) * PAGE_TOKENS)
        for layer in range(LAYERS):
            there.tensors.keys[layer][slots] = content[layer, 0].repeat_interleave(copies, 1)
            there.tensors.values[layer][slots] = content[layer, 1].repeat_interleave(copies, 1)
    return there, here, device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copies", [1, 3])
def test_pages_leave_as_they_leave_the_cpu(dtype: str, copies: int) -> None:
    there, here, _ = filled(dtype, copies)
    wanted = [(1, PAGE_TOKENS), (2, PAGE_TOKENS), (3, 2), (0, 1), (5, PAGE_TOKENS), (2, 3)]
    assert there.read_pages(iter(wanted)) == here.read_pages(wanted)
    assert there.read_pages(()) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("tokens", [1, PAGE_TOKENS])
def test_a_page_enters_bit_for_bit_and_the_rest_of_it_becomes_zero(dtype: str, copies: int, tokens: int) -> None:
    there, here, _ = filled(dtype, copies)
    before = there.read_pages([(page, PAGE_TOKENS) for page in (1, 3)])
    payload = here.read_page(4, tokens)
    there.write_page(2, memoryview(payload), tokens)
    here.write_page(2, payload, tokens)
    assert there.read_pages([(2, PAGE_TOKENS)]) == here.read_pages([(2, PAGE_TOKENS)])
    assert there.read_pages([(page, PAGE_TOKENS) for page in (1, 3)]) == before
    for flat in (*there.tensors.keys, *there.tensors.values):
        heads = flat.view(-1, KV_HEADS, copies, HEAD_DIM)
        assert torch.equal(heads, heads[:, :, :1].expand_as(heads))


def test_pages_beside_each_other_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _, _ = filled()
    copied: list[int] = []
    copy = torch.Tensor.copy_

    def counting(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        assert target.is_contiguous()
        copied.append(target.shape[0])
        return copy(target, source, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", counting)
    there.read_pages([(page, PAGE_TOKENS) for page in (1, 2, 3, 5)])
    assert copied == [3 * PAGE_TOKENS] * 2 * LAYERS + [PAGE_TOKENS] * 2 * LAYERS


def test_the_device_is_waited_for_before_and_after_pages_move() -> None:
    there, here, device = filled()
    there.read_pages([(1, 1), (4, 1)])
    assert device.waits == 2
    there.write_page(1, here.read_page(0, 1), 1)
    assert device.waits == 4
