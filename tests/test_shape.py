"""The shape of the house: how long its files and functions may be, how they may be named, where packages begin."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "actors", "protos/batonmesh")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
BANNED_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
SPEAKING_INITS = {Path("protos/batonmesh/__init__.py")}  # the face of the thin client


def written_files(*folders: str) -> Iterator[Path]:
    """Python files written by hand, relative to the root."""
    for folder in folders:
        assert (ROOT / folder).is_dir(), f"{folder} moved: these tests would look at nothing"
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path.relative_to(ROOT)


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in written_files(*PACKAGES, "tests")}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    too_long = {}
    for path in written_files(*PACKAGES, "tests"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long[f"{path}:{node.lineno} {node.name}"] = lines
    assert too_long == {}


def test_every_file_is_named_after_one_idea() -> None:
    parts = {(path, part) for path in written_files(*PACKAGES, "tests") for part in path.with_suffix("").parts}
    assert [str(path) for path, part in parts if BANNED_WORDS & set(part.split("_"))] == []


def test_every_package_directory_has_an_empty_init() -> None:
    folders = {path.parent for path in written_files(*PACKAGES)}
    inits = {folder / "__init__.py" for folder in folders}
    assert [str(init) for init in sorted(inits) if not (ROOT / init).exists()] == []
    assert [str(init) for init in sorted(inits - SPEAKING_INITS) if (ROOT / init).read_text()] == []
