"""What becomes of a session that is erased: its tombstone, who has been told of it, and what is left with others.

The tombstone, the end of the data key and of every row are one transaction, so there is no moment in which a part of a
session can be read. Workers are told afterwards, each generation once, for as long as a late start could still come.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.ids import BootId, SessionId, TenantId, WorkerId


@dataclass(frozen=True, slots=True)
class WorkerReceipt:
    """One generation of a worker: the pages that it dropped, and those that stay there because other sessions have used
    them. None until it has answered; one that died first has no memory any more."""

    worker: WorkerId
    boot: BootId
    dropped: int | None = None
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class Erasure:
    """`at_ms` is the store's clock, milliseconds since 1970; `rows` how many each table has lost. `scrubbed`: they are
    gone from the files of the store as well, as far as those are the mesh's own."""

    session: SessionId
    tenant: TenantId
    at_ms: int
    rows: Mapping[str, int]
    scrubbed: bool
    workers: tuple[WorkerReceipt, ...] = ()
