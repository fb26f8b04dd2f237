"""Who has used the pages of a store: told by marks beside them, so that an erased session's are found and removed."""

import threading
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from runtime.domain.readers import NOBODY, Reader
from runtime.domain.tiers import Wanted
from runtime.errors import Unavailable
from runtime.kv.tiers import cold as cold_module
from runtime.kv.tiers.cold import ColdTier
from runtime.kv.tiers.objects import Listed, Objects
from tests.kv.tiers.conftest import OpenStore
from tests.kv.tiers.pages import CODEC, SALT, frame, ident, parent, reader, wanted
from tests.kv.tiers.test_cold import LARGE, Failing, files, folder, read, tier


def keeps(cold: ColdTier, *sessions: str, pages: range) -> None:
    """The pages are there, and used by these."""
    for number in pages:
        assert cold.write(None if ident(number) in cold else frame(number), wanted(number, SALT, *sessions))


def names(objects: Objects) -> set[str]:
    """Without folders, as `page` or `page.reader`, each by its number or name."""
    known = {ident(number).hex(): str(number) for number in range(16)}
    whose = {reader(name): name for name in ("one", "two")} | {NOBODY: "nobody"}
    found = set()
    for listed in objects.list():
        page, _, mark = listed.name.rpartition("/")[2].partition(".")
        if "-" in page:
            found.add(known[page.partition("-")[0]] + (f".{whose[Reader(mark)]}" if mark else ""))
    return found


def test_a_page_bears_the_marks_of_the_sessions_that_have_used_it(opened: OpenStore) -> None:
    store = opened()
    cold = tier(store)
    keeps(cold, pages=range(1))
    assert names(store) == {"0"}, "what is nobody's needs no mark"
    keeps(cold, "one", pages=range(2))
    assert names(store) == {"0", "0.nobody", "0.one", "1", "1.one"}
    keeps(cold, "one", "two", pages=range(1, 2))
    keeps(cold, pages=range(1, 2))
    assert names(store) == {"0", "0.nobody", "0.one", "1", "1.one", "1.two", "1.nobody"}
    again = tier(store)
    again.keep()
    assert not any(again.lacks(ident(number), cold.readers(ident(number))) for number in range(2))
    assert again.lacks(ident(0), frozenset({reader("two")}))


def test_what_only_an_erased_session_has_used_is_gone_and_the_rest_is_counted(opened: OpenStore) -> None:
    store = opened()
    cold = tier(store, now=count().__next__)
    keeps(cold, "one", pages=range(4))
    keeps(cold, "two", pages=range(2))
    keeps(cold, pages=range(1))
    other = tier(store)
    assert other.forget(reader("one")) == (2, 2), "by whichever worker"
    assert names(store) == {"0", "0.two", "0.nobody", "1", "1.two"}
    assert cold.forget(reader("one")) == (0, 0)
    assert cold.forget(reader("two")) == (1, 1)
    assert names(store) == {"0", "0.nobody"}
    assert read(cold, 3) is None
    cold.keep()
    assert [ident(number) in cold for number in range(4)] == [True, False, False, False]


def test_late_writes_of_an_erased_session_are_refused(tmp_path: Path) -> None:
    """Invariant 13."""
    cold = tier(folder(tmp_path))
    cold.bury(reader("one"))
    assert cold.write(frame(0), wanted(0, SALT, "one")), "and not tried again"
    assert cold.write(frame(1), wanted(1, SALT, "one", "two"))
    assert names(folder(tmp_path)) == {"1", "1.two"}


def test_an_erasure_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, go, begun = folder(tmp_path), threading.Event(), threading.Event()
    cold, create = tier(store), store.create

    def slow(name: str, content: bytes) -> None:
        begun.set()
        go.wait(30)
        create(name, content)

    monkeypatch.setattr(store, "create", slow)
    monkeypatch.setattr(cold_module, "_LATE_S", 0.1)
    writing = threading.Thread(target=cold.write, args=(frame(0), wanted(0, SALT, "one")))
    writing.start()
    begun.wait(30)
    cold.bury(reader("one"))
    with pytest.raises(Unavailable):
        cold.forget(reader("one"))
    go.set()
    assert cold.forget(reader("one"))[0] <= 1
    writing.join()
    assert cold.forget(reader("one")) == (0, 0)
    assert files(tmp_path) == []


def test_the_mark_is_there_before_its_page_and_what_a_dead_writer_left_goes_with_it(tmp_path: Path) -> None:
    store = folder(tmp_path)
    cold = tier(store)
    keeps(cold, "one", pages=range(1))
    (mark,) = tmp_path.rglob("*.*")
    page = mark.with_suffix("")
    page.rename(f"{page}#1")
    assert cold.forget(reader("one")) == (0, 0)
    assert files(tmp_path) == []


def test_a_store_that_fails_half_way_is_asked_again(tmp_path: Path) -> None:
    class Halting(Failing):
        def delete(self, names: Sequence[str]) -> None:
            super().delete(names)
            self.broken = "it failed"

    store = Halting(folder(tmp_path))
    keeps(tier(store), "one", pages=range(3))
    with pytest.raises(Unavailable):
        tier(store).forget(reader("one"))
    assert names(folder(tmp_path)) == {"0.one", "1.one", "2.one"}
    tier(folder(tmp_path)).forget(reader("one"))
    assert files(tmp_path) == []


def test_pages_that_are_let_go_take_their_marks_and_marks_without_a_page_go_in_time(tmp_path: Path) -> None:
    now = [0.0]
    store = folder(tmp_path)
    cold = ColdTier(store, CODEC, LARGE, -1.0, lambda: now[0])
    keeps(cold, "one", pages=range(2))
    cold.keep()
    assert files(tmp_path) == []
    store.create(f"{cold._prefix}/00/{ident(5).hex()}-{parent(5).hex()}.{reader('one')}", b"")
    cold.keep()
    assert len(files(tmp_path)) == 1, "its page may be under way"
    asked = store.now
    store.now = lambda prefix, probe_bytes=0: asked(prefix, probe_bytes) + 7200  # type: ignore[method-assign]
    cold.keep()
    assert files(tmp_path) == []


def test_marks_that_come_while_the_store_is_listed_are_not_forgotten(tmp_path: Path) -> None:
    store = Failing(folder(tmp_path))
    cold = tier(store)
    listing = store.list

    def meanwhile() -> Iterator[Listed]:
        found = list(listing())
        cold._index.mark(ident(0), reader("one"))
        return iter(found)

    store.list = meanwhile  # type: ignore[method-assign]
    cold.keep()
    assert cold.write(frame(0), Wanted(ident(0), parent(0), 0, SALT, frozenset({reader("one")})))
    assert cold.readers(ident(0)) == {reader("one")}
