"""The three calls of the seam, by the vendor's names, on interfaces that are only pretended; and what they raise."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._dynamo.backends import registry

from runtime.engine.neuron.buckets import Bucket
from runtime.engine.neuron.build import open_neuron
from runtime.engine.neuron.device import Launch, LiteNeuron
from runtime.engine.neuron.stand_in import StandIn
from runtime.errors import StartError
from tests.engine.neuron.conftest import on_stand_in

Backend = Callable[..., Callable[..., object]]


def pretend(monkeypatch: pytest.MonkeyPatch, module: str, backend: str) -> list[dict[str, object]]:
    """A module and a backend by these names; returns what the backend is called with, for each graph."""
    heard: list[dict[str, object]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **settings: object) -> Callable[..., object]:
        heard.append(settings)
        return graph.forward

    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setitem(registry._BACKENDS, backend, None)
    monkeypatch.setitem(registry._COMPILER_FNS, backend, compiler)
    return heard


def test_the_native_device_is_compiled_for_and_waited_for_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, waits = pretend(monkeypatch, "torch_neuronx", "neuron"), list[str]()
    monkeypatch.setattr(torch, "neuron", SimpleNamespace(synchronize=lambda: waits.append("waited")), raising=False)
    device = open_neuron("torch", 2)
    assert device.name == "neuron"
    assert device.compile(lambda tensor: tensor + 1)(torch.zeros(2)).tolist() == [1, 1]
    device.synchronize()
    assert (heard, waits) == ([{}], ["waited"])


def test_the_lite_device_is_told_how_cores_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = pretend(monkeypatch, "libtorch_neuronx_lite", "neuron_libtorch")
    assert LiteNeuron.name == "neuron:0"
    monkeypatch.setattr(LiteNeuron, "name", "cpu")  # where its tensors can live here
    device = open_neuron("lite", 2)
    assert device.compile(lambda tensor: tensor + 1)(torch.zeros(2)).tolist() == [1, 1]
    device.synchronize()
    assert heard == [{"options": {"compiler_args": ["--lnc", "2"]}}]


def test_a_second_shape_is_no_second_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = pretend(monkeypatch, "torch_neuronx", "neuron")
    monkeypatch.setattr(torch, "neuron", SimpleNamespace(), raising=False)
    launch = open_neuron("torch", None).compile(lambda tensor: tensor + 1)
    launch(torch.zeros(2))
    with pytest.raises(Exception, match="fullgraph=True"):
        launch(torch.zeros(3))
    assert len(heard) == 1


@pytest.mark.parametrize("stage", ["compile", "synchronize"])
def test_cores_that_another_process_holds_are_told_with_the_bucket(
    stage: str, checkpoint: Callable[[str], Path]
) -> None:
    class Taken(StandIn):
        """The vendor's runtime takes its cores late: at the first launch, or when that is waited for."""

        def compile(self, function: Launch) -> Launch:
            return self._refuse if stage == "compile" else lambda *_: torch.zeros(1)

        def synchronize(self) -> None:
            self._refuse()

        def _refuse(self, *_: object) -> torch.Tensor:
            raise RuntimeError("NRT:nrt_allocate_neuron_cores NeuronCore(s) not available - Requested:1 Available:0")

    with pytest.raises(StartError, match=r"bucket 8 tokens \+ 2 pages: its cores are reserved by another process"):
        on_stand_in(checkpoint("llama"), (Bucket(8, 2),), device=Taken())
