"""The seam to the accelerator: its name, how a function is compiled for it, and when what was started has ended.

All that differs between the vendor's interfaces is here; everything else runs the same on the CPU.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Launch = Callable[..., torch.Tensor]


class Device(Protocol):
    @property
    def name(self) -> str:
        """Where tensors live, in torch's words."""

    def compile(self, function: Launch) -> Launch:
        """`function` as one static graph, made at its first call; one that it does not fit fails and makes no other."""

    def synchronize(self) -> None:
        """Return when all that was started has ended. A copy from the host does not wait for it by itself."""


def compile_once(function: Launch, backend: str | Callable[..., Any], options: dict[str, Any] | None = None) -> Launch:
    """Every call to this makes a cache of its own, with room for one graph."""
    compiler: Any = torch.compile  # whose overloads lack its newest arguments
    compiled: Launch = compiler(
        function,
        backend=backend,
        options=options,
        fullgraph=True,
        dynamic=False,
        isolate_recompiles=True,
        recompile_limit=1,
    )
    return compiled


class TorchNeuron:
    """The vendor's native PyTorch device, of torch-neuronx 2.13 and later."""

    name = "neuron"

    def __init__(self) -> None:
        importlib.import_module("torch_neuronx")
        self._neuron: Any = getattr(torch, "neuron")  # noqa: B009 - the module above puts it there

    def compile(self, function: Launch) -> Launch:
        return compile_once(function, "neuron")

    def synchronize(self) -> None:
        self._neuron.synchronize()


class LiteNeuron:
    """The smaller device that vLLM's plugin brings, where only a copy to the host waits."""

    name = "neuron:0"

    def __init__(self, compiler_args: Sequence[str]) -> None:
        importlib.import_module("libtorch_neuronx_lite")
        self._options = {"compiler_args": list(compiler_args)}
        self._probe = torch.zeros(1).to(self.name)

    def compile(self, function: Launch) -> Launch:
        return compile_once(function, "neuron_libtorch", self._options)

    def synchronize(self) -> None:
        self._probe.cpu()
