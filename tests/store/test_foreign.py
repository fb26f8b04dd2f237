"""What nobody vouches for is not unpacked into more than the machine can bear: objects are counted, not measured."""

import tracemalloc
from collections.abc import Callable

import msgpack
import pytest

from runtime.errors import InvalidArgument
from runtime.store import bundle as bundles
from runtime.store import foreign
from runtime.store.bundle import Bundle, Rows, read_bundle, write_bundle
from runtime.store.foreign import Counting, check_payload, read_session, read_table
from runtime.store.packing import pack

MANY = 600_000
BEARABLE = 8 * MANY
"""Bytes: as objects each would take 50 and more of them."""


def table(*cells: bytes, rows: bytes | None = None) -> bytes:
    """One whose only row has these values, as they are packed."""
    told = b"\x91" + bytes([0x90 + len(cells)]) + b"".join(cells) if rows is None else rows
    return b"\x93" + pack("lines") + pack(("line",)) + told


def many(byte: bytes) -> bytes:
    return b"\xdd" + MANY.to_bytes(4, "big") + byte * MANY


def of_tables(body: bytes) -> None:
    read_table(body, Counting(1000))


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (read_session, many(b"\x80")),
        (of_tables, table(many(b"\x80"))),
        (of_tables, table(b"\x91" * MANY)),
        (of_tables, table(b"\x80")),
        (of_tables, table(rows=many(b"\x90"))),
        (of_tables, table(rows=b"\xdd\xff\xff\xff\xff" + b"\x91\0" * MANY)),
        (of_tables, table(rows=b"\x91" + many(b"\0"))),
        (check_payload, b"\x92" + many(b"\x80") + many(b"\x90")),
        (check_payload, b"\xdd\x7f\xff\xff\xff" * 100),
    ],
)
def test_few_bytes_that_stand_for_many_objects_are_refused_without_making_them(
    read: Callable[[bytes], object], body: bytes
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, msgpack.UnpackException)):
            read(body)
        assert tracemalloc.get_traced_memory()[1] < BEARABLE + len(body)
    finally:
        tracemalloc.stop()


def test_what_a_bundle_holds_is_read_as_it_was_written() -> None:
    rows = [(1, None, -5), (2**40, "Ünï", b"bytes")]
    assert read_table(pack(("lines", ("a", "b", "c"), rows)), Counting(20)) == ("lines", ("a", "b", "c"), rows)
    with pytest.raises(ValueError, match="follows"):
        of_tables(table(b"\0") + b"\0")


def test_a_file_of_countless_records_or_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Rows("lines", (), ())
    with pytest.raises(InvalidArgument, match="more than 64 records"):
        read_bundle(write_bundle(Bundle({}, (empty,) * 65)))
    written = write_bundle(Bundle({}, (Rows("lines", ("line",), [(1,)] * 10),)))
    read_bundle(written)
    monkeypatch.setattr(bundles, "MAX_VALUES", 20)
    with pytest.raises(InvalidArgument, match="makes no sense"):
        read_bundle(written)
    assert foreign.MAX_VALUES > MANY
