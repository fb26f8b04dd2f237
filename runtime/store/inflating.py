"""How large the tokens of a bundle are once they are inflated. Counts them in pieces and keeps none."""

import zlib
from typing import Any

from runtime.store.bundle import Bundle
from runtime.store.content import SEGMENTS, TURNS
from runtime.store.packing import DEFLATED, unpack

MAX_INFLATED_BYTES = 256 << 20
"""Of all tokens of a session that is carried in a file: a million of them fit 64 times."""
_PIECE = 1 << 20


def inflated(bundle: Bundle, enough: int) -> int:
    """In bytes; stops counting beyond `enough`. Raises what makes no sense, as `packing.UNREADABLE` lists it."""
    total = 0
    for rows in bundle.tables:
        for row in rows.rows:
            for packed in _packed(rows.table, dict(zip(rows.columns, row, strict=True))):
                total += _size(packed, enough - total)
                if total > enough:
                    return total
    return total


def _packed(table: str, values: dict[str, Any]) -> list[bytes]:
    if table == SEGMENTS.name:
        return [values["tokens"]]
    if table != TURNS.name:
        return []
    found = [values["prompt"], None if values["ending"] is None else unpack(values["ending"])["tokens"]]
    return [packed for packed in found if packed is not None]


def _size(packed: bytes, enough: int) -> int:
    if packed[:1] != DEFLATED:
        return len(packed)
    inflating, left, size = zlib.decompressobj(), packed[1:], 0
    try:
        while left and size <= enough:
            size += len(inflating.decompress(left, _PIECE))
            left = inflating.unconsumed_tail
    except zlib.error as error:
        raise ValueError("tokens cannot be inflated") from error
    return size
