"""What makes several ranks' parts of a model one model: sums in every layer, and the gathering of its logits.

Every rank must call the same collectives in the same order, which it does because it runs the same chunks.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from runtime.errors import EngineFailed
from runtime.model.share import SUMMED
from runtime.model.spec import LAYERS_OF_TEXT

_dist: Any = torch.distributed  # whose annotations lack half of it
_IN_LAYER = re.compile(LAYERS_OF_TEXT + r"\d+\.(?:.+\.)?(?P<owner>[^.]+)$")


class Group:
    """This rank's end of its group. Not the process's default group, of which a process has but one.

    All methods are collectives and raise `EngineFailed` when a rank is gone, or does not join within `deadline_s`.
    """

    def __init__(self, store: Path, rank: int, ranks: int, deadline_s: float, device: torch.device) -> None:
        """Meet the other ranks at `store`, a file that is not there yet, in a folder that is."""
        self.rank, self.ranks = rank, ranks
        with _apart():
            self._group: Any = _connect(_dist.FileStore(str(store), ranks), rank, ranks, deadline_s, device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place; bit for bit the same on all ranks, which therefore stay together however often they sum."""
        return self._reduce(tensor, _dist.ReduceOp.SUM)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What all ranks brought, each in the shape of `tensor`, for rank 0; nothing for the others."""
        options = _dist.GatherOptions()
        options.rootRank = 0
        found = [[torch.empty_like(tensor) for _ in range(self.ranks)]] if self.rank == 0 else []
        with _apart():
            self._group.gather(found, [tensor.contiguous()], options).wait()
        return found[0] if found else []

    def agree(self, tensor: torch.Tensor) -> bool:
        """Whether all ranks brought the same."""
        least = self._reduce(tensor.clone(), _dist.ReduceOp.MIN)
        return torch.equal(least, self._reduce(tensor.clone(), _dist.ReduceOp.MAX))

    def close(self) -> None:
        """Give up the connections and the port of this end; no collective is called any more."""
        self._group = None

    def _reduce(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:  # noqa: ANN401
        options = _dist.AllreduceOptions()
        options.reduceOp = _dist.ReduceOp(operation)
        with _apart():
            self._group.allreduce([tensor], options).wait()
        return tensor


def _connect(store: Any, rank: int, ranks: int, deadline_s: float, device: torch.device) -> Any:  # noqa: ANN401
    deadline = timedelta(seconds=deadline_s)
    if device.type == "cuda":
        nccl = _dist.ProcessGroupNCCL.Options()
        nccl._timeout = deadline
        return _dist.ProcessGroupNCCL(store, rank, ranks, nccl)
    gloo = _dist.ProcessGroupGloo._Options()
    gloo._timeout = deadline
    gloo._devices = [_dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return _dist.ProcessGroupGloo(store, rank, ranks, gloo)


@contextmanager
def _apart() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineFailed(f"its ranks lost each other: {error}") from error


class Summed(nn.Module):
    """A layer that has a part of the inputs: its output is the sum of what all ranks make of theirs."""

    def __init__(self, inner: nn.Module, group: Group) -> None:
        super().__init__()
        self.inner = inner
        self._group = group

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        partial: torch.Tensor = self.inner(*inputs)
        return self._group.sum(partial.contiguous())


class Gathered(nn.Module):
    """The output layer `linear`, of whose rows each rank computes some: all of them at rank 0, its own elsewhere."""

    def __init__(self, linear: nn.Linear, group: Group, *, shared: bool) -> None:
        """`shared`: the weight is another layer's too, so that nothing is gained by not keeping it."""
        super().__init__()
        self._rows = linear.out_features
        self._group = group
        self.inner = _rows_of(linear, group.rank, math.ceil(self._rows / group.ranks), shared=shared)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        own: torch.Tensor = self.inner(inputs)
        parts = self._group.gather(own)
        return torch.cat(parts, -1)[..., : self._rows] if parts else own


def _rows_of(linear: nn.Linear, rank: int, count: int, *, shared: bool) -> nn.Linear:
    """`count` rows of a layer from that of `rank` on; where it has none any more, zeros."""

    def own(whole: torch.Tensor) -> nn.Parameter:
        rows = whole[rank * count : (rank + 1) * count]
        if len(rows) < count:
            rows = torch.cat((rows, rows.new_zeros(count - len(rows), *rows.shape[1:])))
        return nn.Parameter(rows if shared else rows.clone(), requires_grad=False)

    biased = linear.get_parameter("bias") if "bias" in dict(linear.named_parameters()) else None
    found = nn.Linear(linear.in_features, count, bias=biased is not None, device="meta")
    found.weight = own(linear.weight)
    if biased is not None:
        found.bias = own(biased)
    return found


def sum_over(model: PreTrainedModel, group: Group) -> None:
    """Make one rank's part of a model, in place, give what the whole model gives; before anything else changes it."""
    for name, module in list(model.named_modules()):
        found = _IN_LAYER.match(name)
        if found is not None and _has_part_of_inputs(found["owner"], module):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Summed(module, group))
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), "a causal language model ends in a linear layer"
    inputs = model.get_input_embeddings()
    shared = isinstance(inputs, nn.Embedding) and inputs.weight is head.weight
    model.set_output_embeddings(Gathered(head, group, shared=shared))


def _has_part_of_inputs(owner: str, module: nn.Module) -> bool:
    """A linear layer of such a name, or experts that keep all of their layers of that name in one tensor."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return bool(own & SUMMED) or (owner in SUMMED and "weight" in own)
