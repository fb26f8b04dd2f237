"""What memory is free, what a model takes of it, and whether its pages of KV fit too, told before any is taken."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import psutil

from runtime.domain.pool_size import Room, mib
from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint
from runtime.model.share import Share

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_log = logging.getLogger(__name__)


def room_of(checkpoint: Checkpoint, spec: ModelSpec, free: int, shares: Sequence[Share] = ()) -> Room:
    """What all ranks together find in `free` bytes; without `shares` there are no ranks."""
    ranks, copies = (len(shares), shares[0].kv.copies) if shares else (1, 1)
    return Room(
        free=free,
        weights=ranks * _weights(checkpoint, shares[0] if shares else None) * DTYPE_BYTES[spec.dtype],
        page_bytes=spec.page_bytes * copies,
        page_tokens=spec.page_tokens,
        max_tokens=spec.max_tokens,
    )


def check_fits(checkpoint: Checkpoint, spec: ModelSpec, pages: int, free: int, shares: Sequence[Share] = ()) -> None:
    """Report what the engine takes of `free` bytes, which all of its ranks share; without `shares` it has no ranks.
    Raises `ModelError` with the arithmetic when that is too little.

    Other processes take memory meanwhile, so that it fits now is no promise; that it does not is certain.
    """
    room, ranks = room_of(checkpoint, spec, free, shares), max(1, len(shares))
    page_bytes = room.page_bytes // ranks
    account = (
        (f"each of {ranks} ranks takes " if shares else "")
        + f"weights of {mib(room.weights // ranks)} in {spec.dtype}, and {mib((pages + 1) * page_bytes)} of KV: "
        f"{pages} pages of {spec.page_tokens} tokens, {page_bytes} bytes each, "
        f"which hold {pages * spec.page_tokens} tokens"
    )
    taken = room.taken(pages)
    if taken > free:
        raise ModelError(f"{spec.name} does not fit: {account}. Together {mib(taken)}, and {mib(free)} are free")
    _log.info("%s takes %s of %s that are free: %s", spec.name, mib(taken), mib(free), account)


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
