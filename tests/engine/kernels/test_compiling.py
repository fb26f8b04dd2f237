"""The kernels are compiled once for a machine, and an engine runs where they cannot be."""

import logging
from pathlib import Path

import pytest

from runtime.engine.kernels import compiling

needs_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="this machine has no C compiler")


@pytest.fixture(autouse=True)
def _anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "compiled", compiling.compiled.__wrapped__)


@needs_compiler
def test_what_was_compiled_is_kept_for_the_next_process_and_for_nobody_else(tmp_path: Path) -> None:
    assert compiling.compiled() is not None
    (library,) = (tmp_path / "baton").iterdir()
    assert (tmp_path / "baton").stat().st_mode & 0o777 == 0o700
    made = library.stat().st_mtime_ns
    assert compiling.compiled() is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "baton").iterdir()] == [made]


@needs_compiler
def test_another_processor_or_another_source_is_compiled_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiling.compiler()
    assert found is not None
    before = compiling._identity(found)
    monkeypatch.setattr(compiling, "_abilities", lambda: "flags: none")
    assert compiling._identity(found) != before


@needs_compiler
def test_sources_that_do_not_compile_are_told_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.c").write_text("int broken(")
    monkeypatch.setattr(compiling, "_SOURCES", tmp_path)
    assert compiling.compiled() is None
    assert "does not compile the engine's kernels, which runs slower without: " in caplog.text
    assert [path.name for path in (tmp_path / "baton").iterdir()] == []


def test_a_machine_without_a_compiler_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PATH", "")
    assert compiling.compiled() is None
    assert "this machine has no C compiler" in caplog.text


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiling.compiled() is None
    assert "the engine's kernels are not there" in caplog.text
