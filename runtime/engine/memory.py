"""Whether a model and its pages of KV fit into what memory is free, told before any of it is taken."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import psutil

from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint
from runtime.model.share import Share

_MIB = 1 << 20
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


def check_fits(checkpoint: Checkpoint, spec: ModelSpec, pages: int, free: int, shares: Sequence[Share] = ()) -> None:
    """Report what the engine takes of `free` bytes, which all of its ranks share; without `shares` it has no ranks.
    Raises `ModelError` with the arithmetic when that is too little.

    Other processes take memory meanwhile, so that it fits now is no promise; that it does not is certain.
    """
    ranks, share, page_bytes, each = 1, None, spec.page_bytes, ""
    if shares:
        ranks, share = len(shares), shares[0]
        page_bytes = spec.page_bytes * share.kv.held // spec.kv_heads
        each = f"each of {ranks} ranks takes "
    weights = _weights(checkpoint, share) * DTYPE_BYTES[spec.dtype]
    pool = (pages + 1) * page_bytes  # one more than the batcher has: the zero page
    account = (
        f"{each}weights of {_mib(weights)} in {spec.dtype}, and {_mib(pool)} of KV: {pages} pages of "
        f"{spec.page_tokens} tokens, {page_bytes} bytes each, which hold {pages * spec.page_tokens} tokens"
    )
    taken = ranks * (weights + pool)
    if taken > free:
        raise ModelError(f"{spec.name} does not fit: {account}. Together {_mib(taken)}, and {_mib(free)} are free")
    _log.info("%s takes %s of %s that are free: %s", spec.name, _mib(taken), _mib(free), account)


def _weights(checkpoint: Checkpoint, share: Share | None) -> int:
    """How many numbers a checkpoint holds, or of those a rank. Ranks differ by a bias, no more."""
    if share is not None:
        return share.weights(checkpoint)
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def free_bytes(group: Path = _CONTROL_GROUP) -> int:
    """What this process may still take: of the machine's memory, and of its control group's, where one bounds it."""
    return min([psutil.virtual_memory().available, *_free_in(group)])


def _free_in(group: Path) -> list[int]:
    """Nothing where there is no such group or it has no bound. What the group keeps of files can be taken back."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    return [] if limit == "max" else [max(0, int(limit) - used + int(stat.get("inactive_file", 0)))]


def _mib(count: int) -> str:
    return f"{math.ceil(count / _MIB):,} MiB"
