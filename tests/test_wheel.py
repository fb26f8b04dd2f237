"""What a user gets from the wheel. An editable install would hide a missing file."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import google.protobuf
import grpc
import pytest
import typing_extensions

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"runtime": "runtime", "actors": "actors", "protos/batonmesh": "batonmesh", "configs": "runtime/configs"}

pytestmark = pytest.mark.slow


def python(*arguments: str, path: list[Path]) -> str:
    """Standard output of an interpreter that sees these folders first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=path[0], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, built from this checkout, was unpacked."""
    built, target = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", built, ROOT], check=True, timeout=100)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def sources() -> Iterator[str]:
    """Paths inside the wheel of all files that the packages consist of."""
    for folder, package in SOURCES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield str(package / path.relative_to(ROOT / folder))


def test_every_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    unpacked = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert sorted(set(sources()) - unpacked) == []


def test_the_shipped_model_and_the_configurations_are_in_the_wheel(installed: Path) -> None:
    shipped = {path.name for path in (installed / "runtime" / "model" / "shipped").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= shipped
    assert (installed / "runtime" / "configs" / "local.yaml").is_file()


def test_the_command_of_the_wheel_runs(installed: Path) -> None:
    code = "import actors.main, sys; print(actors.main.__file__); sys.argv = ['baton', '--help']; actors.main.main()"
    where, help_text = python("-c", code, path=[installed]).split("\n", 1)
    assert Path(where).is_relative_to(installed)
    assert "simtest" in help_text


def test_the_thin_client_needs_grpcio_and_protobuf_only(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "protobuf").symlink_to(Path(google.protobuf.__file__).parent)
    (tmp_path / "google" / "_upb").symlink_to(Path(google.protobuf.__file__).parents[1] / "_upb")
    (tmp_path / "grpc").symlink_to(Path(grpc.__file__).parent)
    (tmp_path / "typing_extensions.py").symlink_to(typing_extensions.__file__)  # a dependency of grpcio
    (tmp_path / "batonmesh").symlink_to(installed / "batonmesh")
    code = "from batonmesh import AsyncClient, Client; print(Client.__module__, AsyncClient.__module__)"
    assert "batonmesh" in python("-S", "-c", code, path=[tmp_path])
