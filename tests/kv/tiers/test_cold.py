"""The cold tier: what is written is found again, and whatever happens to a page or to the store is no more than a page
that is not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.domain.steps import Frame
from runtime.errors import Unavailable
from runtime.kv.tiers import objects
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import Listed, Objects, StoredObjects, open_objects
from runtime.kv.tiers.pages import PageCodec
from tests.kv.tiers.conftest import OpenStore, S3Server
from tests.kv.tiers.pages import (
    CODEC,
    OTHER_SALT,
    SALT,
    SEALED_BYTES,
    SPEC,
    frame,
    ident,
    parent,
    payload,
    wanted,
)

LARGE, LONG_S = 1 << 30, 3600.0


def tier(objects: Objects, capacity_bytes: int = LARGE, now: Callable[[], float] = lambda: 0.0) -> ColdTier:
    return ColdTier(objects, CODEC, capacity_bytes, LONG_S, now)


def folder(path: Path) -> StoredObjects:
    return open_objects(str(path), 5.0)


def write(cold: ColdTier, *numbers: int) -> None:
    for number in numbers:
        cold.write(frame(number), wanted(number))


def read(cold: ColdTier, number: int, salt: bytes = SALT) -> Frame | None:
    return cold.read(ident(number), parent(number), salt)


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*-*") if file.is_file())


class Failing:
    """A store that fails while `broken` says why."""

    def __init__(self, objects: Objects) -> None:
        self.broken = ""
        self.calls = 0
        self.place = objects.place
        self._objects = objects

    def _do(self) -> Objects:
        self.calls += 1
        if self.broken:
            raise Unavailable(self.broken)
        return self._objects

    def get(self, name: str) -> memoryview:
        return self._do().get(name)

    def create(self, name: str, content: bytes) -> None:
        self._do().create(name, content)

    def delete(self, names: Sequence[str]) -> None:
        self._do().delete(names)

    def list(self) -> Iterator[Listed]:
        return self._do().list()

    def now(self, prefix: str, probe_bytes: int = 0) -> float:
        return self._do().now(prefix, probe_bytes)

    def sweep(self, before: float) -> None:
        self._do().sweep(before)


def test_a_page_comes_back_as_it_was(opened: OpenStore) -> None:
    cold = tier(opened())
    write(cold, 0, 1)
    found = read(cold, 1)
    assert found is not None
    assert (found.page, found.index, bytes(found.payload)) == (ident(1), 1, payload(1))
    assert cold.report().written_pages == 2
    assert cold.report().read_pages == 1


def test_a_restart_finds_it_again(opened: OpenStore) -> None:
    write(tier(opened()), *range(5))
    again = tier(opened())
    assert ident(0) not in again
    again.keep()
    assert all(ident(number) in again for number in range(5))
    assert (again.report().pages, again.report().bytes) == (5, 5 * SEALED_BYTES)
    found = read(again, 4)
    assert found is not None
    assert bytes(found.payload) == payload(4)


def test_another_tenant_gets_nothing_of_it(tmp_path: Path) -> None:
    cold = tier(folder(tmp_path))
    write(cold, 0)
    assert read(cold, 0, OTHER_SALT) is None
    (content,) = (file.read_bytes() for file in files(tmp_path)) if files(tmp_path) else (b"",)
    assert payload(0)[:16] not in content


def test_no_byte_of_a_payload_lies_open_on_the_disk(tmp_path: Path) -> None:
    write(tier(folder(tmp_path)), 0)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    assert not any(payload(0)[place : place + 8] in content for place in range(0, 512, 8))


@pytest.mark.parametrize("spoil", ["truncated", "empty", "flipped", "another's"])
def test_a_page_that_was_spoilt_is_counted_removed_and_written_anew(tmp_path: Path, spoil: str) -> None:
    cold = tier(folder(tmp_path))
    write(cold, 0)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    write(cold, 1)
    (other,) = set(files(tmp_path)) - {file}
    flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    file.write_bytes(
        {"truncated": content[:-7], "empty": b"", "flipped": flipped, "another's": other.read_bytes()}[spoil]
    )
    assert read(cold, 0) is None
    assert cold.report().failures == (("corrupt seal", 1),)
    assert not file.exists()
    assert ident(0) not in cold
    assert read(cold, 1) is not None, "the others are as good as before"
    write(cold, 0)
    assert read(cold, 0) is not None


def test_a_page_that_somebody_removed_is_not_there(tmp_path: Path) -> None:
    cold = tier(folder(tmp_path))
    write(cold, 0)
    files(tmp_path)[0].unlink()
    assert read(cold, 0) is None
    assert ident(0) not in cold
    assert cold.report().failures == ()


def test_a_store_that_fails_is_left_alone_for_longer_each_time_and_used_again_when_it_works(tmp_path: Path) -> None:
    now = [100.0]
    store = Failing(folder(tmp_path))
    cold = tier(store, now=lambda: now[0])
    write(cold, 0)
    store.broken = "the bucket is gone"
    assert read(cold, 0) is None
    calls = store.calls
    assert read(cold, 0) is None
    assert store.calls == calls, "nobody waits for it twice in a moment"
    first = cold.reading.left
    assert 0 < first <= 1
    assert cold.report().trouble == "reading: the bucket is gone"
    now[0] += first
    assert read(cold, 0) is None
    assert cold.reading.left > first
    store.broken = ""
    now[0] += 60
    assert read(cold, 0) is not None
    assert (cold.reading.left, cold.report().trouble) == (0, "")
    assert dict(cold.report().failures) == {"reading": 2}


def test_trouble_names_what_does_not_work_and_ends_once_that_works_again(tmp_path: Path) -> None:
    now = [100.0]
    store = Failing(folder(tmp_path))
    cold = tier(store, now=lambda: now[0])
    write(cold, 0)
    store.broken = "No space left on device"
    write(cold, 1)
    store.broken = ""
    assert read(cold, 0) is not None
    assert cold.report().trouble == "writing: No space left on device", "that it can be read is another matter"
    cold.slow(cold.reading)
    assert cold.report().trouble == "reading: it does not answer in time; writing: No space left on device"
    now[0] += 60
    store.broken = "the bucket is gone"
    cold.keep()
    assert cold.report().trouble.endswith("keeping: the bucket is gone")
    store.broken = ""
    now[0] += 60
    cold.keep()
    assert cold.report().trouble == "", "nobody has written or read anything meanwhile"
    assert (cold.reading.left, cold.writing.left) == (0, 0)


def test_a_disk_that_is_still_full_is_still_trouble(tiny_disk: Path) -> None:
    now = [100.0]
    large = PageCodec(replace(SPEC, page_tokens=256))
    cold = ColdTier(folder(tiny_disk), large, LARGE, LONG_S, lambda: now[0])
    filling = tiny_disk / "filling"
    cold.keep()
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    page = Frame(ident(0), 0, 256, bytes(large.spec.page_bytes))
    assert not cold.write(page, wanted(0))
    for _ in range(2):
        now[0] += 60
        cold.keep()
        assert "free on its disk" in cold.report().trouble
    filling.unlink()
    now[0] += 60
    cold.keep()
    assert cold.report().trouble == ""
    assert cold.write(page, wanted(0))


def test_what_cannot_be_written_is_given_up_and_reading_goes_on(tmp_path: Path) -> None:
    store = Failing(folder(tmp_path))
    cold = tier(store)
    write(cold, 0)
    store.broken = "No space left on device"
    write(cold, 1)
    assert ident(1) not in cold
    store.broken = ""
    assert read(cold, 0) is not None
    assert dict(cold.report().failures) == {"writing": 1}


@pytest.mark.parametrize("spared", [0, 2 << 30])
def test_a_full_disk_costs_what_is_not_written(tiny_disk: Path, spared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_SPARED_BYTES", spared)
    store = folder(tiny_disk)
    cold = tier(store)
    write(cold, 0)
    (tiny_disk / "filling").write_bytes(bytes((1 << 20) - (64 << 10)))
    write(cold, *range(1, 200))
    assert ("No space left" in cold.report().trouble) is (spared == 0)
    assert shutil.disk_usage(tiny_disk).free >= (1 << 20) // 20 - 8192 or not spared
    failures = dict(cold.report().failures)
    assert failures == {"writing": 1}, "it is left alone after the first"
    assert read(cold, 0) is not None
    assert all(read(cold, number) is not None for number in range(1, 200) if ident(number) in cold)


def test_a_killed_server_costs_what_was_there(s3: S3Server) -> None:
    cold = tier(open_objects(s3.bucket(), 1.0))
    write(cold, 0)
    assert read(cold, 0) is not None
    s3.kill()
    assert read(cold, 0) is None
    write(cold, 1)
    cold.keep()
    assert {"reading", "writing"} <= dict(cold.report().failures).keys()


def test_a_server_that_hangs_is_given_up_in_time(s3: S3Server) -> None:
    cold = tier(open_objects(s3.bucket(), 1.0))
    write(cold, 0)
    s3.process.send_signal(signal.SIGSTOP)
    try:
        assert read(cold, 0) is None
        assert cold.reading.left > 0
    finally:
        s3.process.send_signal(signal.SIGCONT)


def test_the_store_stays_within_its_bound_and_loses_what_was_not_used_for_longest(tmp_path: Path) -> None:
    now = [0.0]
    cold = tier(folder(tmp_path), capacity_bytes=6 * SEALED_BYTES, now=lambda: now[0])
    write(cold, *range(10))
    cold.keep()
    assert cold.report().bytes <= 6 * SEALED_BYTES
    assert len(files(tmp_path)) == cold.report().pages == 5, "some room is made, not for one page"
    assert all(ident(number) in cold for number in range(5)), "a chain loses its end"


def test_what_is_written_between_two_looks_stays_within_the_bound(tmp_path: Path) -> None:
    cold = tier(folder(tmp_path), capacity_bytes=6 * SEALED_BYTES)
    write(cold, *range(10))
    assert len(files(tmp_path)) == 6
    assert cold.full
    assert cold.report().trouble == ""
    cold.keep()
    assert not cold.full
    write(cold, *range(20, 30))
    assert len(files(tmp_path)) == 6


def test_what_was_not_used_for_long_is_collected_whatever_model_it_was_of(tmp_path: Path) -> None:
    now = [0.0]
    cold = tier(folder(tmp_path), now=lambda: now[0])
    write(cold, 0, 1)
    old = tmp_path / "ffff-float32-32-v0" / "00" / f"{'00' * 16}-0"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of another model")
    for file in [*files(tmp_path), old]:
        os.utime(file, (1, 1))
    now[0] = 5 * LONG_S
    cold.touch(ident(0))
    cold.keep()
    assert ident(0) in cold, "it is used here"
    assert ident(1) not in cold
    assert not old.exists()


def test_workers_of_two_data_types_share_a_store_and_each_knows_its_own_pages(tmp_path: Path) -> None:
    half = PageCodec(replace(SPEC, dtype="bfloat16"))
    other = ColdTier(folder(tmp_path), half, LARGE, LONG_S, lambda: 0.0)
    cold = tier(folder(tmp_path), capacity_bytes=round(2.4 * SEALED_BYTES))
    write(cold, 0)
    other.write(Frame(ident(0), 0, SPEC.page_tokens, payload(0)[: half.spec.page_bytes]), wanted(0))
    for codec in (CODEC, half):
        again = ColdTier(folder(tmp_path), codec, LARGE, LONG_S, lambda: 0.0)
        again.keep()
        assert ident(0) in again
        assert again.report().pages == 1
    write(cold, 1)
    cold.keep()
    assert len(files(tmp_path)) == 2, "of whatever type, it counts"


def test_what_is_written_while_the_store_is_listed_is_not_forgotten(tmp_path: Path) -> None:
    store = Failing(folder(tmp_path))
    now = [0.0]
    cold = tier(store, now=lambda: now[0])
    listing = store.list

    def meanwhile() -> Iterator[Listed]:
        found = list(listing())
        now[0] += 1
        write(cold, 0)
        return iter(found)

    store.list = meanwhile  # type: ignore[method-assign]
    cold.keep()
    assert ident(0) in cold


WRITER = """
import json, sys
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import open_objects
from tests.kv.tiers.pages import CODEC, frame, wanted
cold = ColdTier(open_objects(sys.argv[1], 5.0), CODEC, 1 << 30, 3600.0)
number = 0
while True:
    cold.write(frame(number), wanted(number))
    number += 1
    print(json.dumps(number), flush=True)
"""


def test_a_writer_killed_within_a_write_leaves_whole_pages_and_no_others(tmp_path: Path) -> None:
    for attempt in range(3):
        place = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line) >= 20 + attempt:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        again = tier(folder(place))
        again.keep()
        assert again.report().pages >= 20
        assert all(read(again, number) is not None for number in range(again.report().pages))
        assert again.report().failures == ()
