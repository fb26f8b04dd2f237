"""What cannot work is refused at once, by the field at fault, before Ray is started."""

from pathlib import Path

import pytest

from actors.state import StateFolder
from runtime.model.synthetic import make_llama
from tests.actors.running import Mesh


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A checkpoint whose weights end early."""
    folder = tmp_path / "cut"
    make_llama(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def refused(mesh: Mesh) -> str:
    done = mesh.baton("up")
    assert done.status == 1
    assert "Traceback" not in done.err
    assert mesh.folder.read() is None
    assert mesh.folder.holder() is None
    return done.err


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "typo", gateway={"htp_port": 8000})
    assert "gateway.htp_port: unknown key; did you mean http_port?" in refused(mesh)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "gone")
    mesh.file.unlink()
    assert f"{mesh.file}: cannot be read: No such file or directory" in refused(mesh)


def test_a_missing_model_directory_is_named_before_anything_is_started(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "absent", model={"simulated": None, "path": "nowhere"})
    assert f"model.path: {tmp_path / 'nowhere'}: there is no such model directory" in refused(mesh)


def test_truncated_weights_are_named(tmp_path: Path, cut: Path) -> None:
    mesh = Mesh(tmp_path, "short", model={"simulated": None, "path": str(cut)})
    message = refused(mesh)
    assert "model.path: " in message
    assert "model.safetensors" in message


@pytest.mark.skipif(Path("/dev/neuron0").exists(), reason="there is a Neuron device")
def test_a_device_that_is_not_there_is_named_before_anything_is_started(tmp_path: Path) -> None:
    workers = [{"name": "d", "role": "decode", "device": "neuron"}]
    mesh = Mesh(tmp_path, "bare", model={"simulated": None, "path": "shipped"}, workers=workers)
    assert "device neuron: there is no /dev/neuron0" in refused(mesh)


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "lost", ray={"address": "127.0.0.1:1"})
    assert "ray.address: nobody answers at 127.0.0.1:1" in refused(mesh)


def test_status_and_down_say_that_nothing_runs(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "idle")
    status = mesh.baton("status")
    assert status.status == 1
    assert "no mesh named idle is running; `baton up` starts one, and --config asks for another" in status.err
    down = mesh.baton("down")
    assert (down.status, down.out.strip()) == (0, "no mesh named idle is running")
    assert StateFolder(mesh.folder.root).read() is None
