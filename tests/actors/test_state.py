"""The lock and the record of a running mesh."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.state import Record, StateFolder, describe
from runtime.errors import StartError

_HOLDER = """
import sys, time
from pathlib import Path
from actors.state import StateFolder
with StateFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(100)
"""


def record(**changes: object) -> Record:
    fields = {"mesh": "local", "run": "r", "pid": 4242, "since": 1.75e9, "scratch": "/tmp/b", "log": "/tmp/l"}
    return Record.model_validate(fields | changes)


def test_a_second_supervisor_is_told_of_the_first(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    with folder.held():
        folder.write(record(ready=True, grpc="127.0.0.1:50051", http="http://127.0.0.1:8000"))
        assert folder.holder() == os.getpid()
        with (
            pytest.raises(StartError, match=r"local is running already: pid 4242, since 2025-.*127\.0\.0\.1:50051"),
            folder.held(),
        ):
            pytest.fail("two held one lock")
    assert folder.holder() is None


def test_a_mesh_that_starts_is_told_even_before_it_wrote_its_record(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.held(), pytest.raises(StartError, match="is starting or stopping"), folder.held():
        pytest.fail("two held one lock")


def test_the_lock_of_a_killed_supervisor_is_free(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert folder.holder() == holder.pid
        holder.kill()
        holder.wait()
    assert folder.holder() is None
    with folder.held():
        assert folder.holder() == os.getpid()


def test_a_record_is_read_back_until_it_is_forgotten(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert folder.read() is None
    folder.write(record())
    assert folder.read() == record()
    folder.forget()
    assert folder.read() is None


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.write(record())
    (tmp_path / "running.json").write_text("{")
    assert folder.read() is None


def test_a_mesh_that_is_not_ready_has_no_addresses_to_tell() -> None:
    assert "not ready yet" in describe(record())


def test_a_folder_that_cannot_be_made_names_the_field() -> None:
    with pytest.raises(StartError, match=r"mesh\.state: "), StateFolder(Path(os.devnull) / "state").held():
        pytest.fail("held a lock inside a device")


def test_controllers_are_numbered_over_all_supervisors(tmp_path: Path) -> None:
    numbers = [StateFolder(tmp_path).next_incarnation() for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_a_damaged_number_is_not_started_over(tmp_path: Path) -> None:
    (tmp_path / "incarnation").write_text("many")
    with pytest.raises(StartError, match="incarnation holds no number"):
        StateFolder(tmp_path).next_incarnation()
