"""What each of several ranks holds of a model whose layers they share: which heads, and which part of a tensor.

A rank's model is a smaller one of the same architecture: fewer heads, narrower MLPs. So whatever loads and runs a whole
model does it to a rank's too; all that it lacks are the sums over the ranks (`runtime.engine.parallel.summing`).
Read from a checkpoint's shapes alone, without torch.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint
from runtime.model.shards import StoredTensor
from runtime.model.spec import LAYERS_OF_TEXT, key_shape

FIELD = "engine.tensor_parallel"
# The sizes of a configuration that are those of what the ranks share, beside its heads.
WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_KEYS = {"k_proj", "v_proj"}
# Layers whose outputs are shared, and whose outputs are sums of what the ranks make of their part of the inputs.
_COLUMNS = {"q_proj", "gate_proj", "up_proj", "w1", "w3", "c_fc"} | _KEYS
_ROWS = {"o_proj", "down_proj", "w2", "c_proj"}
# Several layers in one tensor, one after the other: each is shared by itself.
_QUERIES_KEYS_VALUES, _GATE_UP = "qkv_proj", "gate_up_proj"
SHARED = _COLUMNS | _ROWS | {_QUERIES_KEYS_VALUES, _GATE_UP}
SUMMED = frozenset(_ROWS)
# A name of a language model's tensor in a layer: what it belongs to, and what it is there.
_NAME = re.compile(LAYERS_OF_TEXT + r"\d+\.(?:.+?\.)?(?P<owner>[^.]+?)(?:\.(?P<kind>weight|bias))?$")
_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """How `ranks` share `kv_heads`: evenly, or, where there are more ranks than heads, several with the same one."""

    kv_heads: int
    ranks: int

    @property
    def held(self) -> int:
        """How many heads each rank holds."""
        return max(1, self.kv_heads // self.ranks)

    @property
    def copies(self) -> int:
        """How many ranks hold each head."""
        return max(1, self.ranks // self.kv_heads)

    @property
    def tellers(self) -> range:
        """The ranks that hold every head once between them, in the order of their heads."""
        return range(0, self.ranks, self.copies)

    def of(self, rank: int) -> slice:
        first = rank * self.kv_heads // self.ranks
        return slice(first, first + self.held)

    @property
    def possible(self) -> bool:
        return self.kv_heads % self.ranks == 0 or self.ranks % self.kv_heads == 0


@dataclass(frozen=True, slots=True)
class Part:
    """The `ranges` of dimension `axis` of a stored tensor, one after the other, in `shape`; no ranges are zeros, for
    what another rank adds."""

    axis: int
    ranges: tuple[slice, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """What rank `rank` of `ranks` holds of a model with that many heads, made by `share_of`."""

    rank: int
    ranks: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def kv(self) -> HeadSplit:
        return HeadSplit(self.kv_heads, self.ranks)

    def part(self, tensor: StoredTensor) -> Part | None:
        """What to take of a tensor; None for the whole."""
        name = _NAME.match(tensor.name)
        if name is None or name["owner"] not in SHARED:
            return None
        owner, axes = name["owner"], len(tensor.shape)
        if owner not in SUMMED:
            axis = 0 if name["kind"] else axes - 2
            return _taken(tensor.shape, axis, self._columns(owner, tensor.shape[axis]))
        if name["kind"] != "bias":
            return _taken(tensor.shape, axes - 1, [self._even(0, tensor.shape[-1])])
        return None if self.rank == 0 else Part(0, (), tensor.shape)

    def weights(self, checkpoint: Checkpoint) -> int:
        """How many numbers of a checkpoint this rank holds."""
        parts = ((tensor, self.part(tensor)) for tensor in checkpoint.tensors.values())
        return sum(math.prod(tensor.shape if part is None else part.shape) for tensor, part in parts)

    def _columns(self, owner: str, extent: int) -> list[slice]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if owner in _KEYS:
            return [self._keys(0)]
        if owner == _QUERIES_KEYS_VALUES:
            return [self._even(0, queries), self._keys(queries), self._keys(queries + keys)]
        if owner == _GATE_UP:
            return [self._even(0, extent // 2), self._even(extent // 2, extent // 2)]
        return [self._even(0, extent)]

    def _even(self, first: int, extent: int) -> slice:
        width = extent // self.ranks
        return slice(first + self.rank * width, first + (self.rank + 1) * width)

    def _keys(self, first: int) -> slice:
        heads = self.kv.of(self.rank)
        return slice(first + heads.start * self.head_dim, first + heads.stop * self.head_dim)


def shares_of(checkpoint: Checkpoint, ranks: int) -> list[Share]:
    """One for each rank. Raises `ModelError` by the name of the field for a model that so many cannot share."""
    kv_heads, head_dim = key_shape(checkpoint)
    heads = _heads(checkpoint, kv_heads, head_dim)
    if heads % ranks or not HeadSplit(kv_heads, ranks).possible:
        numbers = [n for n in range(1, heads + 1) if heads % n == 0 and HeadSplit(kv_heads, n).possible]
        raise _cannot(
            checkpoint,
            f"{ranks} ranks cannot share its {heads} attention heads with {kv_heads} for keys and values; "
            f"{', '.join(map(str, numbers))} can",
        )
    shares = [Share(rank, ranks, heads, kv_heads, head_dim) for rank in range(ranks)]
    for tensor in checkpoint.tensors.values():
        _check(checkpoint, tensor, shares[0])
    return shares


def _check(checkpoint: Checkpoint, tensor: StoredTensor, share: Share) -> None:
    name = _NAME.match(tensor.name)
    if name is None:
        return
    if name["owner"] in _NORMS and tensor.shape != (share.head_dim,):
        raise _cannot(checkpoint, f"its {name['owner']} spans all heads of a layer, of which a rank has some")
    part = share.part(tensor)
    if part is None or name["owner"] in _KEYS | {_QUERIES_KEYS_VALUES}:
        return
    whole = tensor.shape[part.axis]
    if part.shape[part.axis] * share.ranks != whole:
        raise _cannot(checkpoint, f"{share.ranks} ranks cannot share the {whole} rows or columns of {tensor.name}")


def _heads(checkpoint: Checkpoint, kv_heads: int, head_dim: int) -> int:
    """Of the queries, by the tensor that makes them."""
    for tensor in checkpoint.tensors.values():
        name = _NAME.match(tensor.name)
        if name is None or name["kind"] != "weight":
            continue
        if name["owner"] == "q_proj":
            return tensor.shape[0] // head_dim
        if name["owner"] == _QUERIES_KEYS_VALUES:
            return tensor.shape[0] // head_dim - 2 * kv_heads
    raise _cannot(checkpoint, "it has no layer that is known to make queries")


def _taken(shape: tuple[int, ...], axis: int, ranges: Sequence[slice]) -> Part:
    extent = sum(taken.stop - taken.start for taken in ranges)
    return Part(axis, tuple(ranges), (*shape[:axis], extent, *shape[axis + 1 :]))


def _cannot(checkpoint: Checkpoint, reason: str) -> ModelError:
    return ModelError(f"{FIELD}: {checkpoint.architecture} in {checkpoint.path} cannot be split: {reason}")
