"""A device that is not there: the CPU, behind a compiler that holds graphs to the rules of the real one.

What it lets through is one static graph for each compiled function, of known operators, int32 indices and in-place
updates of whole inputs only. It says nothing of speed, nor of what the vendor's compiler makes of the graph.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from runtime.engine.neuron.device import Launch, compile_once
from runtime.errors import ModelError

_PLAIN = (
    "_softmax _to_copy _unsafe_view add addmm alias arange bitwise_and bmm cat clone copy_ cos detach div embedding "
    "expand full full_like gt index index_put le lt mean mm mul neg ones_like permute pow rsqrt select sigmoid silu "
    "sin slice split split_with_sizes sub t tanh transpose unsqueeze view where zeros_like"
)
OPERATORS = frozenset(f"aten.{name}" for name in _PLAIN.split())
# Which argument of an operator holds indices.
_INDICES = {"aten.index": 1, "aten.index_put": 1, "aten.embedding": 1}


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was let through: how often it has each operator, and the shapes that it takes."""

    operators: Counter[str]
    shapes: tuple[tuple[int, ...], ...]


class StandIn:
    """`graphs` are those that were compiled, in order."""

    name = "cpu"

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self._backend = aot_autograd(fw_compiler=self._accept, keep_inference_input_mutations=True)

    def compile(self, function: Launch) -> Launch:
        return compile_once(function, self._backend)

    def synchronize(self) -> None:
        """On the CPU, what was started has ended."""

    def _accept(self, module: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., object]:
        """Raises `ModelError` by the rule that the graph breaks."""
        operators: Counter[str] = Counter()
        for node in module.graph.nodes:
            _check_static(node)
            if node.op == "call_function":
                name = _operator(node)
                _check_indices(node, name)
                operators[name] += 1
        if unknown := operators.keys() - OPERATORS:
            raise ModelError(f"the model needs operators that are not known to compile: {', '.join(sorted(unknown))}")
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        self.graphs.append(Graph(operators, shapes))
        boxed: Callable[..., object] = make_boxed_func(module.forward)
        return boxed


def _operator(node: torch.fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket)
    return str(getattr(node.target, "__name__", node.target))


def _check_static(node: torch.fx.Node) -> None:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    if any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes):
        raise ModelError(f"the graph has a size that is not static: {node} is {value}")


def _check_indices(node: torch.fx.Node, name: str) -> None:
    if name not in _INDICES:
        return
    found = node.args[_INDICES[name]]
    for index in found if isinstance(found, list | tuple) else [found]:
        if isinstance(index, torch.fx.Node) and index.meta["val"].dtype != torch.int32:
            raise ModelError(f"{node} has indices of {index.meta['val'].dtype}: they must be int32")
