"""Python's cyclic garbage collector in a process that serves one part of a mesh for its whole life."""

import gc

_YOUNG = 20_000


def spare_what_stays() -> None:
    """Call it once the process serves. What is there then stays, so looking through it again and again, megabytes of
    modules, is in vain; and what a request leaves is freed by counting references, so the rest may gather longer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
