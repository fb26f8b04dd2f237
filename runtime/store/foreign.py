"""Reads msgpack that nobody vouches for: of few bytes that stand for a lot of objects, no more are made than are
bearable."""

from typing import Any

import msgpack

MAX_VALUES = 4 << 20
"""Of all rows of a bundle together."""
MAX_PAYLOAD_BYTES = 16 << 20
_MAX_CONTAINERS = 1 << 20
_MAX_SESSION_BYTES = 64 << 10
_MAX_COLUMNS = 32
_DEEP = 16


class Counting:
    """How many values are left that may still be made."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, values: int) -> None:
        """Raises `ValueError`."""
        self._left -= values
        if self._left < 0:
            raise ValueError("there are too many values")


def read_session(body: bytes) -> Any:  # noqa: ANN401 - what was packed
    """Raises `ValueError`, or as msgpack does."""
    if len(body) > _MAX_SESSION_BYTES:
        raise ValueError("what it says of itself is too long")
    return msgpack.unpackb(body, max_array_len=_DEEP, max_map_len=_MAX_COLUMNS)


def read_table(body: bytes, counting: Counting) -> tuple[Any, tuple[Any, ...], list[tuple[Any, ...]]]:
    """A table's name, its columns and its rows, each a tuple of values that hold no others. Raises `ValueError`,
    `TypeError`, or as msgpack does."""
    # The headers of what may hold values are read one by one, so that whatever else there is may hold none.
    reader = msgpack.Unpacker(
        max_buffer_size=len(body),
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        use_list=False,
        object_pairs_hook=_refuse,
    )
    reader.feed(body)
    if reader.read_array_header() != 3:
        raise ValueError("a table is its name, its columns and its rows")
    name, columns = reader.unpack(), _row(reader, counting)
    rows = [_row(reader, counting) for _ in range(reader.read_array_header())]
    if reader.tell() != len(body):
        raise ValueError("something follows")
    return name, columns, rows


def check_payload(packed: bytes) -> None:
    """Raises `ValueError`, or as msgpack does, unless what was packed may be unpacked."""
    if len(packed) > MAX_PAYLOAD_BYTES:
        raise ValueError("a value is too long")
    counting = Counting(_MAX_CONTAINERS)
    # What was counted is let go at once.
    hook = lambda _: counting.take(1)  # noqa: E731
    msgpack.unpackb(packed, max_array_len=_MAX_CONTAINERS, list_hook=hook, object_pairs_hook=hook)


def _row(reader: Any, counting: Counting) -> tuple[Any, ...]:  # noqa: ANN401 - msgpack tells no types
    size = reader.read_array_header()
    if size > _MAX_COLUMNS:
        raise ValueError("no table has so many columns")
    counting.take(size + 1)
    return tuple([reader.unpack() for _ in range(size)])


def _refuse(_: object) -> None:
    raise ValueError("a value of a table holds no others")
