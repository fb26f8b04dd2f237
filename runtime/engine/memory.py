"""Whether a model and its pages of KV fit into what memory is free, told before any of it is taken."""

import logging
import math
from pathlib import Path

import psutil

from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint

_MIB = 1 << 20
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


def check_fits(checkpoint: Checkpoint, spec: ModelSpec, pages: int, free: int) -> None:
    """Report what the engine takes of `free` bytes. Raises `ModelError` with the arithmetic when that is too little.

    Other processes take memory meanwhile, so that it fits now is no promise; that it does not is certain.
    """
    weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()) * DTYPE_BYTES[spec.dtype]
    pool = (pages + 1) * spec.page_bytes  # one more than the batcher has: the zero page
    account = (
        f"weights of {_mib(weights)} in {spec.dtype}, and {_mib(pool)} of KV: {pages} pages of {spec.page_tokens} "
        f"tokens, {spec.page_bytes} bytes each, which hold {pages * spec.page_tokens} tokens"
    )
    if weights + pool > free:
        raise ModelError(
            f"{spec.name} does not fit: {account}. Together {_mib(weights + pool)}, and {_mib(free)} are free"
        )
    _log.info("%s takes %s of %s that are free: %s", spec.name, _mib(weights + pool), _mib(free), account)


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
