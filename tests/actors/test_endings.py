"""However a mesh ends, nothing of it is left."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from actors.processes import of_run
from tests.actors.running import START_S, Mesh, check_nothing_left, shared_memory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(START_S * 2)]


def test_ctrl_c_stops_everything_that_was_started(tmp_path: Path) -> None:
    mesh, before = Mesh(tmp_path, "foreground"), shared_memory()
    with mesh.begin("up") as process:
        assert process.stdout is not None
        while "Ctrl-C stops it" not in process.stdout.readline():
            assert process.poll() is None
        record = mesh.record
        assert len(of_run(record.run)) > 5
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=START_S)
    assert process.returncode == 0, err
    assert "nothing is left running" in out
    check_nothing_left(mesh, record, before)


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    mesh, before = Mesh(tmp_path, "hasty"), shared_memory()
    with mesh.begin("up") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Ray: ")
        record = mesh.record
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=START_S)
    assert process.returncode == 130
    check_nothing_left(mesh, record, before)


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    mesh, before = Mesh(tmp_path, "starved", engine={"pages": 2}), shared_memory()
    with mesh.begin("up") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Ray: ")
        record = mesh.record
        _, err = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "did not start: engine.pages: makes 2 pages" in err
    check_nothing_left(mesh, record, before)


@pytest.mark.parametrize("command", ["down", "up"])
def test_what_a_killed_supervisor_leaves_is_cleared_away(tmp_path: Path, command: str) -> None:
    mesh, before = Mesh(tmp_path, "killed"), shared_memory()
    assert mesh.baton("up", "--detach").status == 0
    record = mesh.record
    os.kill(record.pid, signal.SIGKILL)
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == record.pid], timeout=30)
    if command == "up":
        again = mesh.baton("up", "--detach")
        assert again.status == 0, again.err
        assert of_run(record.run) == []
        assert not record.scratch.exists()
        record = mesh.record
    down = mesh.baton("down")
    assert down.status == 0, down.err
    check_nothing_left(mesh, record, before)


def test_a_mesh_in_the_foreground_ends_with_whoever_started_it(tmp_path: Path) -> None:
    mesh, before = Mesh(tmp_path, "orphan"), shared_memory()
    with mesh.begin("up") as process:
        assert process.stdout is not None
        while "Ctrl-C stops it" not in process.stdout.readline():
            assert process.poll() is None
        record = mesh.record
        process.kill()
        process.communicate()
    psutil.Process(record.pid).wait(timeout=START_S)
    check_nothing_left(mesh, record, before)
