"""What a store does, a folder and a bucket alike: whole objects, created once, on its own clock."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import NotFound, StartError, Unavailable
from runtime.kv.tiers.objects import open_objects
from tests.kv.tiers.conftest import OpenStore, S3Server

CONTENT = bytes(range(256)) * 40


def test_what_was_created_is_read_listed_and_deleted(opened: OpenStore) -> None:
    store = opened()
    store.create("a/b/one", CONTENT)
    store.create("a/two", b"2")
    assert bytes(opened().get("a/b/one")) == CONTENT
    assert sorted((each.name, each.size) for each in store.list()) == [("a/b/one", len(CONTENT)), ("a/two", 1)]
    store.delete(["a/b/one", "a/nothing"])
    with pytest.raises(NotFound):
        store.get("a/b/one")
    assert bytes(store.get("a/two")) == b"2"


def test_an_object_is_created_once(opened: OpenStore) -> None:
    opened().create("one", b"first")
    opened().create("one", b"second")
    assert bytes(opened().get("one")) == b"first"


def test_ages_are_on_the_clock_of_the_store(opened: OpenStore) -> None:
    store = opened()
    before = store.now("model")
    store.create("model/one", b"1")
    after = store.now("model")
    (one,) = (each for each in store.list() if each.name == "model/one")
    assert before - 1 <= one.modified <= after + 1  # S3 tells whole seconds


def test_what_a_writer_left_that_died_is_not_listed_and_swept_when_it_is_old(tmp_path: Path) -> None:
    store = open_objects(str(tmp_path), 1.0)
    store.create("model/one", b"1")
    left = tmp_path / "model" / "two#1"
    left.write_bytes(b"hal")
    assert [each.name for each in store.list()] == ["model/one"]
    store.sweep(time.time())
    assert left.exists()
    store.sweep(time.time() + 7200)
    assert not left.exists()
    assert bytes(store.get("model/one")) == b"1"


def test_what_is_finished_or_gone_while_it_is_swept_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_objects(str(tmp_path), 1.0)
    old = tmp_path / "old#1"
    old.write_bytes(b"hal")
    monkeypatch.setattr(Path, "rglob", lambda *_: iter([tmp_path / "just renamed#1", old]))
    store.sweep(time.time() + 7200)
    assert not old.exists()


def test_a_folder_that_fails_while_it_is_swept_is_told_as_any_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Iterator[Path]:
        raise OSError(errno.ESTALE, "Stale file handle")
        yield tmp_path

    store = open_objects(str(tmp_path), 1.0)
    monkeypatch.setattr(Path, "rglob", failing)
    with pytest.raises(Unavailable, match="Stale"):
        store.sweep(time.time())


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match=r"kv\.tiers\.cold"):
        open_objects(str(tmp_path / "file" / "store"), 1.0)


def test_a_full_disk_is_told(tiny_disk: Path) -> None:
    store = open_objects(str(tiny_disk), 1.0)
    store.create("small", b"1")
    with pytest.raises(Unavailable, match="No space left"):
        store.create("large", bytes(4 << 20))
    assert [each.name for each in store.list()] == ["small"]


def test_a_server_that_was_killed_is_told_soon(s3: S3Server) -> None:
    store = open_objects(s3.bucket(), 1.0)
    store.create("one", b"1")
    s3.kill()
    began = time.monotonic()
    for call in (lambda: store.get("one"), lambda: store.create("two", b"2"), lambda: list(store.list())):
        with pytest.raises(Unavailable):
            call()
    assert time.monotonic() - began < 30


def test_a_bucket_that_is_not_there_is_told_and_never_raises_something_else(s3: S3Server) -> None:
    assert s3.bucket()
    store = open_objects("s3://no-such-bucket/mesh", 1.0)
    with pytest.raises((Unavailable, NotFound)):
        store.get("one")
    with pytest.raises(Unavailable):
        store.create("one", b"1")
