"""What ARCHITECTURE.md names is there: files, folders, and the tests that prove its invariants."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "ARCHITECTURE.md").read_text()
NAMES = set(re.findall(r"`([^`\s]+)`", DOCUMENT))
PATHS = sorted(name for name in NAMES if re.fullmatch(r"[\w./-]+(/|\.py|\.md)", name) and not name.startswith("_"))
TESTS = sorted(name for name in NAMES if re.fullmatch(r"test_\w+", name))
PLANNED = {"runtime/capacity"}


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_architecture_names_exists(path: str) -> None:
    folders = (ROOT, ROOT / "runtime", ROOT / "tests" / "domain")
    assert any((folder / path).exists() for folder in folders)


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_the_architecture_names_exists(name: str) -> None:
    assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("place", sorted(PLANNED))
def test_what_the_architecture_says_is_not_built_is_not_there(place: str) -> None:
    assert place in NAMES
    assert not (ROOT / place).exists()


def test_every_invariant_has_its_row() -> None:
    rows = re.findall(r"^\| ([\d, -]+) \|", DOCUMENT, re.MULTILINE)
    named = {number for row in rows for number in _numbers(row)}
    assert named == set(range(1, 20))


def _numbers(row: str) -> range:
    first, *others = re.findall(r"\d+", row)
    return range(int(first), int(others[-1] if others else first) + 1)
